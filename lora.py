"""LoRA (Hu et al. 2021): inject, save, load, merge. W x becomes W x + (alpha / r) B A x; only A and B are
trained.

Adapters are saved in PEFT's format (`adapter_config.json`, `adapter_model.safetensors`), so PEFT, vLLM and
others load them. `python lora.py merge --model BASE --adapter FOLDER --out FOLDER` writes a plain Hugging
Face folder.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import cli
import flags

if __name__ == "__main__":
    cli.begin(flags.merging, __doc__)

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn
from transformers.pytorch_utils import Conv1D

from cli import UserError

PREFIX = "base_model.model."  # PEFT's name for the wrapped model
# settings of PEFT's that change what an adapter computes
OTHER_KINDS = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "lora_bias", "modules_to_save",
               "use_qalora", "alora_invocation_tokens")  # fmt: skip
# other starts also change the base model's own weights
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")


class LoRALinear(nn.Module):
    """A frozen nn.Linear or GPT-2 Conv1D (whose weight is transposed), and a trained low-rank update.

    A is float32 (r, in), Kaiming-uniform as in Hu et al.'s code; B is float32 (out, r), zero: the start is
    the identity.
    """

    def __init__(self, base: nn.Linear | Conv1D, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        self.base, self.scaling = base, alpha / rank
        weight = base.weight
        inside, outside = weight.shape if isinstance(base, Conv1D) else weight.shape[::-1]
        bound = 1 / math.sqrt(inside)
        a = torch.empty(rank, inside).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(outside, rank, device=weight.device))

    def forward(self, x):  # (…, in) → (…, out)
        # autocast makes no copy
        exact = x if torch.is_autocast_enabled(x.device.type) else x.to(self.lora_A.dtype)
        base, low = self.base(x), F.linear(exact, self.lora_A)  # (…, out), (…, r)
        whole = torch.addmm(
            base.to(low.dtype).flatten(0, -2), low.flatten(0, -2), self.lora_B.T, alpha=self.scaling
        )
        return whole.view_as(base).to(base.dtype)

    def delta(self):
        """(alpha / r) B A in the base weight's orientation, float32."""
        update = self.scaling * (self.lora_B @ self.lora_A)
        return update.T if isinstance(self.base, Conv1D) else update


def inject(model: nn.Module, rank: int = 8, alpha: float = 16, seed: int = 0) -> list[nn.Parameter]:
    """Freeze the model, put LoRA on every linear layer of attention and MLP; returns the trained parameters.

    All linear layers are taken but the output projection to the vocabulary (METHOD: the paper does not name
    its targets).
    """
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise ValueError("the model already carries LoRA layers")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings()
    targets = [
        (n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head
    ]
    for name, module in targets:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoRALinear(module, rank, alpha, generator))
    return parameters(model)


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for layer in layers(model).values() for p in (layer.lora_A, layer.lora_B)]


def targets(model: nn.Module) -> list[str]:
    """The layers as PEFT names them: by the last part of their names where no other module has it as well."""
    names = {name for name, _ in model.named_modules()}
    leaves = {name.rpartition(".")[2] for name in layers(model)}
    meant = {name for name in names if name.rpartition(".")[2] in leaves}
    return sorted(leaves if meant == set(layers(model)) else layers(model))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's tensor names → adapter weights."""
    return {
        f"{PREFIX}{name}.{key}.weight": getattr(layer, key).detach().cpu().contiguous()
        for name, layer in layers(model).items()
        for key in ("lora_A", "lora_B")
    }


def save(model: nn.Module, folder: Path, base_name: str):
    """Write the adapter, and nothing but the adapter, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = layers(model)
    first = next(iter(found.values()))
    rank = first.lora_A.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": first.scaling * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": isinstance(first.base, Conv1D),
        "target_modules": targets(model),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "adapter_model.safetensors").write_bytes(serialize(state(model), metadata={"format": "pt"}))


def read(folder: Path) -> tuple[int, float, dict[str, torch.Tensor]]:
    """(rank, alpha, tensors) of a saved adapter; raises UserError where the folder holds none of LoRA."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}, so no adapter.")
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank, alpha, tensors = (
            config["r"],
            config["lora_alpha"],
            load_file(folder / "adapter_model.safetensors"),
        )
        other = [name for name in OTHER_KINDS if config.get(name)]
        other += ["init_lora_weights"] if config.get("init_lora_weights") not in PLAIN_STARTS else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no readable adapter (adapter_config.json, adapter_model.safetensors): {error}"
        )
    if config.get("peft_type", "LORA") != "LORA" or other:
        raise UserError(
            f"the adapter in {folder} is not plain LoRA: {', '.join(other) or config['peft_type']}."
        )
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise UserError(
            f"{folder / 'adapter_config.json'}: r must be a number from 1 on and lora_alpha a number."
        )
    if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{folder / 'adapter_model.safetensors'} holds weights that are not finite numbers.")
    return rank, alpha, tensors


def load(model: nn.Module, folder: Path):
    """Load an adapter, injecting the LoRA layers it was made with where the model has none yet.

    Raises UserError where the folder holds no adapter or one made for another model.
    """
    rank, alpha, tensors = read(folder)
    if not layers(model):
        inject(model, rank, alpha)
    mine = {
        f"{PREFIX}{n}.{k}.weight": getattr(m, k)
        for n, m in layers(model).items()
        for k in ("lora_A", "lora_B")
    }
    if {k: tuple(v.shape) for k, v in mine.items()} != {k: tuple(v.shape) for k, v in tensors.items()}:
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
        raise UserError(
            f"the adapter in {folder} was made for another model or rank (its layers or shapes differ):"
            f" it names {base or 'no model'} as its base."
        )
    for layer in layers(model).values():
        layer.scaling = alpha / rank
    with torch.no_grad():
        for key, parameter in mine.items():
            parameter.copy_(tensors[key])


@torch.no_grad()
def merge(model: nn.Module):
    """Replace every LoRA layer by its base with W + (alpha / r) B A, summed in float32, for good."""
    for name, layer in layers(model).items():
        weight = layer.base.weight
        weight.copy_((weight.float() + layer.delta()).to(weight.dtype))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)


def main(argv: list[str] | None = None):
    args = flags.merging(argv, __doc__)
    if args.out.exists() or args.out.is_symlink():
        raise UserError(f"{args.out} exists already.")
    above = next(path for path in args.out.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out: no folder can be made in {above}.")
    from card import card
    from policy import check_adapter, hub_id, load_policy

    check_adapter(args.model, args.adapter)
    policy = load_policy(args.model, args.precision, "cpu")
    load(policy.model, args.adapter)
    merge(policy.model)
    policy.model.save_pretrained(args.out)
    policy.tokenizer.save_pretrained(args.out)
    (args.out / "README.md").write_text(card(Path(args.adapter), hub_id(args.model), True), encoding="utf-8")
    print(f"{args.out}: {args.model} with {args.adapter} merged")


if __name__ == "__main__":
    cli.run(main)
