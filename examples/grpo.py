"""TRL's GRPOTrainer on the bundled questions: the reward is 1 where execution says that an answer is right.

    python examples/grpo.py HuggingFaceTB/SmolLM2-135M-Instruct runs/grpo

Needs trl, peft and datasets (requirements-bench.txt).
"""

import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from rewards import trl_reward
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import data
from prompts import prompt

SHOP = Path(__file__).resolve().parent.parent / "data" / "shop"


def train(model: str, out: str, **settings) -> GRPOTrainer:
    """model: hub id or folder. settings: of GRPOConfig, in place of those below."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = []
    for question in data.load("shop", SHOP, "train")[0]:
        text = prompt(question)
        asked = [{"role": "user", "content": text}] if tokenizer.chat_template else f"{text}\nSQL:\n"
        rows.append({"prompt": asked, "database": question.database, "gold": question.gold})
    usual = {"max_completion_length": 64, "num_generations": 8, "per_device_train_batch_size": 8,
             "learning_rate": 1e-5, "max_steps": 500, "logging_steps": 1}  # fmt: skip
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=trl_reward,
        args=GRPOConfig(output_dir=out, **usual | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    train(*sys.argv[1:])
