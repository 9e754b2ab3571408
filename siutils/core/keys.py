"""Keys of results in a cache: hashes of all that determines them, code included.

The code of a result is that of the modules which its function can reach, found from the imports. A
name that a package offers leads to the module that defines it, so that the package's other modules
do not count. What counts of a module is its syntax tree without docstrings and comments.
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
    """SHA-256 over tensors, mappings, files (as `Path`) and the `repr` of anything else.

    Example:
        >>> a = fingerprint({"w": torch.zeros(2)}, 1)
        >>> a == fingerprint({"w": torch.zeros(2)}, 1), a == fingerprint({"w": torch.zeros(2)}, 2)
        (True, False)
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


def _feed(digest: Any, part: object) -> None:
    if isinstance(part, Tensor):
        digest.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(part, Mapping):
        digest.update(f"mapping {len(part)};".encode())
        for key, value in part.items():
            _feed(digest, key)
            _feed(digest, value)
    elif isinstance(part, tuple):
        digest.update(f"tuple {len(part)};".encode())
        for value in part:
            _feed(digest, value)
    else:
        content = part.read_bytes() if isinstance(part, Path) else repr(part).encode()
        digest.update(f"{type(part).__name__} {len(content)};".encode() + content)


def code_key(module: str, package: Path = PACKAGE) -> str:
    """Hash of the code of all modules of this package that one of them can reach by imports.

    Args:
        module: its full name, of the function that makes the result.
        package: the folder of the package.

    >>> len(code_key("siutils.core.keys"))
    64
    """
    return fingerprint(*reachable_code(module, package).items())


def reachable_code(module: str, package: Path = PACKAGE) -> dict[str, str]:
    """Modules that one can reach by imports, wherever they stand: name → `code` of each.

    >>> list(reachable_code("siutils.core.keys"))
    ['siutils.core.keys']
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            tree = _tree(name, package)
            found[name] = code(tree)
            waiting += [_home(*pair, package) for pair in imports(tree, package.name)]
    return dict(sorted(found.items()))


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """The (module, name) pairs that a syntax tree imports from a package, in functions too.

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
    """A syntax tree as text, without docstrings; comments and layout are none of it.

    >>> a, b = "def f():\\n    'says'\\n    return 1", "def f(): return 1  # one"
    >>> code(ast.parse(a)) == code(ast.parse(b))
    True
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def model_key(model: nn.Module) -> str:
    """Hash of all that determines what a model computes: weights, structure and code.

    The code is that of its modules' classes and of their hooks. Torch and torchvision stand for
    theirs by their versions, other packages by that of the model's.

    >>> model_key(nn.ReLU()) == model_key(nn.ReLU()), model_key(nn.ReLU()) == model_key(nn.GELU())
    (True, False)
    """
    names = "torch", "torchvision", type(model).__module__.partition(".")[0]
    versions = {
        name: str(getattr(sys.modules.get(name), "__version__", ""))
        for name in names
        if name != PACKAGE.name
    }
    sources = sorted({_code_of(part) for part in _classes(model) | _hooks(model)})
    state = model.state_dict(), dict(model.named_buffers())  # also those that are not stored
    return fingerprint(versions, tuple(sources), repr(model), *state)


def _tree(module: str, package: Path) -> ast.Module:
    path = package.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _home(module: str, name: str, package: Path) -> str:
    """The module that defines what is imported by this name."""
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


def _classes(model: nn.Module) -> set[type]:
    classes = {c for module in model.modules() for c in type(module).__mro__}
    known = "torch", "torchvision", "builtins"
    return {c for c in classes if c.__module__.partition(".")[0] not in known}


def _hooks(model: nn.Module) -> set[Any]:
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    ]
    return {hook.func if isinstance(hook, partial) else hook for hook in hooks}


def _code_of(thing: Any) -> str:
    """Code of a class or function: this package's with all that it reaches, others' alone."""
    if str(thing.__module__).partition(".")[0] == PACKAGE.name:
        return code_key(thing.__module__)
    try:
        return code(ast.parse(textwrap.dedent(inspect.getsource(thing))))
    except (OSError, TypeError, SyntaxError):  # it was typed in, not read from a file
        return str(thing.__qualname__)
