"""The libraries of DS-1000 in the other interpreter: which are loaded, when, and how a program sees them."""

import builtins
import contextlib
import importlib
import importlib.abc
import importlib.util
import io
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Imported once, by the zygote. What is missing is missed by the programs that need it.
LIBRARIES = (
    "numpy", "pandas", "scipy.sparse", "scipy.stats", "scipy.optimize", "scipy.spatial", "scipy.interpolate",
    "scipy.integrate", "scipy.signal", "scipy.ndimage", "matplotlib.pyplot", "seaborn", "PIL.Image",
    "sklearn", "torch",
)  # fmt: skip
# Loaded and hidden: `import sklearn` alone must not make `sklearn.cluster` appear, as in a fresh interpreter.
PARTS = (
    "sklearn.preprocessing", "sklearn.datasets", "sklearn.svm", "sklearn.feature_extraction.text",
    "sklearn.linear_model", "sklearn.model_selection", "sklearn.pipeline", "sklearn.cluster",
    "sklearn.decomposition", "sklearn.ensemble", "sklearn.feature_selection", "sklearn.metrics.pairwise",
    "sklearn.calibration", "sklearn.compose", "sklearn.impute", "sklearn.tree", "sklearn.neighbors",
    "scipy.cluster.hierarchy",
)  # fmt: skip
LARGE = ("tensorflow",)  # imported by a supervisor when the first program asks for it
# Of random, numpy and torch where the test sets none; with 0, problems 376 and 897 fall unlike the official
# record.
SEED = 1


def load(name: str) -> bool:
    """Import a module; whether that worked."""
    try:
        importlib.import_module(name)
        if name == "torch":
            sys.modules["torch"].set_num_threads(1)
        return True
    except Exception:
        return False


class Hidden(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that are in memory and not yet in sight.

    To import one shows it, and what it imports, without running it again. Until then a program sees what a
    fresh interpreter would, and fails where that would fail. (What compiled modules import among themselves
    is not recorded: it stays out of sight until a program names it.)
    """

    def __init__(self, names: Iterable[str]):
        self.modules: dict[str, ModuleType] = {}
        self.specs: dict[str, ModuleSpec | None] = {}
        self.imports: dict[str | None, list[str]] = {}  # the names that a module has imported, in order
        visible, original = set(sys.modules), builtins.__import__

        def record(
            name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
        ) -> Any:
            result = original(name, globals, locals, fromlist, level)
            own = globals or {}
            if level:
                name = importlib.util.resolve_name("." * level + name, own.get("__package__"))
            parts = [f"{name}.{part}" for part in fromlist or () if f"{name}.{part}" in sys.modules]
            self.imports.setdefault(own.get("__name__"), []).extend([name, *parts])
            return result

        builtins.__import__ = record
        try:
            for name in names:
                load(name)
        finally:
            builtins.__import__ = original
        hidden = [name for name in sys.modules if name not in visible]
        self.modules = {name: sys.modules[name] for name in hidden}
        for name in hidden:
            parent, _, leaf = name.rpartition(".")
            parent = sys.modules.get(parent) or self.modules.get(parent)
            if vars(parent or self).get(leaf) is self.modules[name]:
                delattr(parent, leaf)
            self.specs[name] = getattr(self.modules[name], "__spec__", None)
            del sys.modules[name]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in self.modules:
            package = hasattr(self.modules[name], "__path__")
            return importlib.util.spec_from_loader(name, self, is_package=package)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        name = module.__spec__.name
        module.__spec__ = self.specs[name]
        for other in self.imports.get(name, ()):
            with contextlib.suppress(ImportError):  # it had a way to do without
                importlib.import_module(other)


def warm_up() -> None:
    """What libraries do once per process, done once for all: the first picture searches the fonts.

    The generators start alike in every zygote: a program that draws without a seed always gets the same
    verdict.
    """
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)
    with contextlib.suppress(Exception):
        plt = sys.modules["matplotlib.pyplot"]
        plt.figure().gca().set_title("$x$")
        plt.savefig(io.BytesIO(), format="png", bbox_inches="tight")
        plt.close("all")
    with contextlib.suppress(Exception):
        torch = sys.modules["torch"]
        torch.testing.assert_close(torch.ones(1), torch.ones(1))
        torch.optim.SGD([torch.ones(1)], lr=0.1)
