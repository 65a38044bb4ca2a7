"""A package that an extra installs is missing: the import says which command installs it."""

import importlib
import sys

import pytest

pytest.importorskip("torch", reason="extra `torch`")


@pytest.mark.parametrize(
    ("module", "package", "names", "extra"),
    [
        ("adamshap.torch", "torch", "PyTorch", "torch"),
        ("adamshap.torch.hugging_face", "accelerate.optimizer", "transformers and accelerate", "hf"),
        ("adamshap.torch.lightning", "lightning.pytorch", "Lightning", "lightning"),
    ],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, names: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as found:
        importlib.import_module(module)
    sentence = str(found.value)
    assert sentence.startswith(f"{module} needs {names} (")
    assert sentence.endswith(f': pip install "adamshap[{extra}]"')
