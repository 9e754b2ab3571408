"""How large the tensors are that an operation makes, for the tests."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """While it is open, `bytes` is the size of the largest new tensor; views are none."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given, made = (
            {t.untyped_storage().data_ptr(): t for t in tree_leaves(tree) if isinstance(t, Tensor)}
            for tree in ((args, kwargs), out)
        )
        new = [t.untyped_storage().nbytes() for at, t in made.items() if at not in given]
        self.bytes = max([self.bytes, *new])
        return out
