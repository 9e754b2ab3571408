"""Cache keys of results: hashes of all that determines a result, its code included.

The code of a result is the code of all modules that its function can reach by imports. A name that
a package offers leads to the module that defines it, so the other modules of that package do not
count. The code of a module is its syntax tree without docstrings and comments.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PACKAGE = Path(__file__).resolve().parents[1]


def fingerprint(*parts: object) -> str:
    """SHA-256 of tensors, mappings, tuples, files (each a `Path`) and the `repr` of anything else.

    >>> a = fingerprint({"w": torch.zeros(2)}, 1)
    >>> a == fingerprint({"w": torch.zeros(2)}, 1), a == fingerprint({"w": torch.zeros(2)}, 2)
    (True, False)
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


def _feed(digest: Any, part: object) -> None:
    if isinstance(part, Mapping):
        part = Mapping, *part.items()
    if isinstance(part, tuple):
        digest.update(f"tuple {len(part)};".encode())
        for value in part:
            _feed(digest, value)
    elif isinstance(part, Tensor):
        digest.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    else:
        content = part.read_bytes() if isinstance(part, Path) else repr(part).encode()
        digest.update(f"{type(part).__name__} {len(content)};".encode() + content)


def code_key(module: str, package: Path = PACKAGE) -> str:
    """Hash of the code of all modules of a package that one of them can reach by imports.

    Args:
        module: full name of the module whose function makes the result.
        package: folder of the package.

    >>> len(code_key("siutils.core.keys"))
    64
    """
    return fingerprint(*reachable_code(module, package).items())


def reachable_code(module: str, package: Path = PACKAGE) -> dict[str, str]:
    """Modules that a module can reach by imports, also inside functions: name → `code` of each.

    >>> list(reachable_code("siutils.core.keys"))
    ['siutils.core.keys']
    """
    reached: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            tree = _tree(name, package)
            reached[name] = code(tree)
            waiting += [_home(*pair, package) for pair in imports(tree, package.name)]
    return dict(sorted(reached.items()))


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """The (module, name) pairs that code imports from a package, also inside functions.

    >>> list(imports(ast.parse("from siutils.core import a, b"), "siutils"))
    [('siutils.core', 'a'), ('siutils.core', 'b')]
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            pairs = [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            pairs = [(alias.name, "") for alias in node.names]
        else:
            continue
        yield from (pair for pair in pairs if pair[0].partition(".")[0] == package)


def code(tree: ast.AST) -> str:
    """A syntax tree as text without docstrings; it has no comments and no layout either.

    >>> a, b = "def f():\\n    'says'\\n    return 1", "def f(): return 1  # one"
    >>> code(ast.parse(a)) == code(ast.parse(b))
    True
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def model_key(model: nn.Module) -> str:
    """Hash of all that determines what a model computes: weights, structure and code.

    The code is that of the classes of its modules and of their hooks. The versions of torch,
    torchvision and the package that the model comes from stand for the rest.

    >>> model_key(nn.ReLU()) == model_key(nn.ReLU()), model_key(nn.ReLU()) == model_key(nn.GELU())
    (True, False)
    """
    packages = {"torch", "torchvision", _package(type(model))} - {PACKAGE.name}
    versions = {p: getattr(sys.modules.get(p), "__version__", "") for p in sorted(packages)}
    things: set[Any] = set()
    for module in model.modules():
        hooks = *module._forward_pre_hooks.values(), *module._forward_hooks.values()
        things |= {hook.func if isinstance(hook, partial) else hook for hook in hooks}
        things |= set(type(module).__mro__)
    known = "torch", "torchvision", "builtins"
    sources = sorted({_code_of(thing) for thing in things if _package(thing) not in known})
    state = model.state_dict(), dict(model.named_buffers())  # also buffers that are not stored
    return fingerprint(versions, tuple(sources), repr(model), *state)


def _package(thing: Any) -> str:
    return str(thing.__module__).partition(".")[0]


def _tree(module: str, package: Path) -> ast.Module:
    path = package.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _home(module: str, name: str, package: Path) -> str:
    """The module that defines a name which is imported from a module or package."""
    folder = package.parent.joinpath(*module.split("."))
    if not name or not folder.is_dir():
        return module
    if (folder / name).is_dir() or (folder / f"{name}.py").is_file():
        return f"{module}.{name}"
    for node in ast.walk(_tree(module, package)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _home(node.module or "", alias.name, package)
    return module


def _code_of(thing: Any) -> str:
    """Code of a class or function, or the `code_key` of its module if this package defines it."""
    if _package(thing) == PACKAGE.name:
        return code_key(thing.__module__)
    try:
        return code(ast.parse(textwrap.dedent(inspect.getsource(thing))))
    except (OSError, TypeError, SyntaxError):  # the source is not in a file
        return str(getattr(thing, "__qualname__", type(thing)))
