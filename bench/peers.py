"""Other engines that draw answers, each in a process of its own: what bench/sampling.py measures against.

    python bench/peers.py vllm '{"block_size": 64}'        answers requests on stdin; settings as JSON

A request is one line of JSON, and so is its reply:

    {"load": "FOLDER", "gguf": "FILE", "precision": "float32", "device": "cpu", "longest": 300,
     "answers": 16, "new": 64}                             → {"seconds": 1.5}

loads the policy's weights; asked again, the engine takes them up anew, as it must for every new adapter.
FOLDER is in Hugging Face's format, FILE (llama.cpp's) holds the same weights. `longest` is the longest
prompt that will come, in tokens, so that the engine can size its cache.

    {"prompts": [[ids], …], "answers": 16, "new": 64, "end": [2], "fixed": false, "memory": false}
                                            → {"seconds": 4.2, "ids": [[[ids] × 16], …], "mib": null}

draws answers at temperature 1 without any truncation, ids[i] those to prompt i. An answer ends with a token
of `end`, which it keeps, or at `new` tokens; with `fixed` all have `new` tokens. `memory`: `mib` is to be the
peak MiB over that before, where the engine does not set its cache aside when it loads.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import nullcontext
from pathlib import Path


class Peer:
    """One engine's process, and the requests to it."""

    def __init__(self, engine, python=sys.executable, threads=1, settings=None, program=__file__):
        self.engine, self.log = engine, tempfile.TemporaryFile("w+")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        openmp = Path(python).parent.parent / "lib" / "libiomp5.so"  # vLLM's manual asks for it
        if engine == "vllm" and openmp.exists():
            environment["LD_PRELOAD"] = str(openmp)
        self.process = subprocess.Popen(
            [python, program, engine, json.dumps(settings or {})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment,
        )  # fmt: skip

    def ask(self, **request):
        """The reply; raises RuntimeError with the end of the engine's log where there is none."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.engine} has ended:\n" + "".join(self.log.readlines()[-20:]))
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Closing its input ends an engine."""
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def serve(engine, requests, replies):
    """Answers each line of `requests` by a line of `replies`."""
    for line in requests:
        request = json.loads(line)
        memory = engine.memory() if request.pop("memory", False) else nullcontext()
        if "load" in request:
            engine.prepare(**request)
            run = engine.load
        else:
            run = lambda: engine.draw(**request)  # noqa: B023, E731
        with memory:
            started = time.time()
            ids = run()
            reply = {"seconds": time.time() - started, "ids": ids}
        replies.write(json.dumps(reply | {"mib": getattr(memory, "mib", None)}) + "\n")
        replies.flush()


def kept(ids, end):
    """An answer up to and including its first end token."""
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in end), len(ids))]


class Engine:
    """settings: what may be tuned, with the values that are taken where none are given."""

    settings = {}

    def __init__(self, settings):
        unknown = set(settings) - set(self.settings)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no settings {sorted(unknown)}, only {self.settings}")
        self.__dict__ |= self.settings | settings

    def prepare(self, **request):
        """What a first load needs and a new adapter does not cost."""
        self.request = request

    def memory(self):
        return nullcontext()


class Generate(Engine):
    """transformers' generate: prompts of like length together, padded on the left."""

    settings = {"questions": 8, "tokens": 65536}  # at once; 24 GB do not hold 128,000 tokens

    def load(self):
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            self.request["load"], dtype=getattr(torch, self.request["precision"]), attn_implementation="sdpa"
        )
        self.model = model.to(self.request["device"]).eval()

    def memory(self):
        from common import PeakMemory

        return PeakMemory()

    def draw(self, prompts, answers, new, end, fixed):
        ids, order, start = (
            [None] * len(prompts),
            sorted(range(len(prompts)), key=lambda i: len(prompts[i])),
            0,
        )
        while start < len(order):
            part = order[start : start + self.questions]
            while len(part) > 1 and len(part) * answers * (len(prompts[part[-1]]) + new) > self.tokens:
                part.pop()
            start += len(part)
            drawn = self.together([prompts[i] for i in part], answers, new, end, fixed)
            for i, one in zip(part, drawn):
                ids[i] = one
        return ids

    def together(self, prompts, answers, new, end, fixed):
        import torch

        width, device = max(map(len, prompts)), self.model.device
        ids = torch.tensor([[end[0]] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        with torch.no_grad():
            drawn = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=answers, max_new_tokens=new, min_new_tokens=new if fixed else None,
                pad_token_id=end[0], eos_token_id=list(end),
            )[:, width:].tolist()  # fmt: skip
        drawn = drawn if fixed else [kept(row, end) for row in drawn]
        return [drawn[i : i + answers] for i in range(0, len(drawn), answers)]


class GenerateBatch(Generate):
    """transformers' continuous batching: a paged cache, in which a prompt's answers share its pages."""

    settings = {"questions": 4, "page": 32, "batch_tokens": 2048}

    def draw(self, prompts, answers, new, end, fixed):
        parts = [prompts[i : i + self.questions] for i in range(0, len(prompts), self.questions)]
        return [one for part in parts for one in self.together(part, answers, new, end, fixed)]

    def together(self, prompts, answers, new, end, fixed):
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        pages = sum(
            math.ceil(len(p) / self.page) + answers * (math.ceil(new / self.page) + 1) for p in prompts
        )
        drawn = self.model.generate_batch(
            prompts,
            generation_config=GenerationConfig(
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new,
                num_return_sequences=answers, eos_token_id=-1 if fixed else list(end), pad_token_id=end[0],
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=self.page, num_blocks=pages, max_batch_tokens=self.batch_tokens,
            ),
        )  # fmt: skip
        drawn = [one.generated_tokens for one in drawn.values()]  # by prompt
        return [drawn[i : i + answers] for i in range(0, len(drawn), answers)]


class LlamaCpp(Engine):
    """llama.cpp's server by the package xllamacpp: one slot for each answer, `n_cmpl` answers to a prompt.

    weights: float32, bfloat16, or as the packaged file has them, which is quantised.
    """

    settings = {"questions": 4, "ubatch": 512, "batch": 2048, "flash": True, "unified": True, "cache": "F16"}
    weights = "packaged"

    def prepare(self, **request):
        self.request, self.server = request, None
        self.file = request["gguf"]
        if self.weights != "packaged":
            self.folder = tempfile.TemporaryDirectory()
            self.file = str(Path(self.folder.name) / "model.gguf")
            self.tensors = self.tensors if hasattr(self, "tensors") else self.dequantised()

    def dequantised(self):
        """[(name, values, type)]: vectors stay float32."""
        from gguf import GGMLQuantizationType as Type
        from gguf import GGUFReader
        from gguf.quants import dequantize, quantize

        tensors = []
        for tensor in GGUFReader(self.request["gguf"]).tensors:
            values, kind = dequantize(tensor.data, tensor.tensor_type), Type.F32
            if self.weights == "bfloat16" and values.ndim > 1:
                values, kind = quantize(values, Type.BF16), Type.BF16
            tensors.append((tensor.name, values, kind))
        return tensors

    def write(self):
        from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType

        fields = GGUFReader(self.request["gguf"]).fields
        writer = GGUFWriter(self.file, fields["general.architecture"].contents())
        for name, field in fields.items():
            if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
                of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), field.types[0], sub_type=of)
        bfloat16 = self.weights == "bfloat16"
        writer.add_file_type(LlamaFileType.MOSTLY_BF16 if bfloat16 else LlamaFileType.ALL_F32)
        for name, values, kind in self.tensors:
            writer.add_tensor(name, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def load(self):
        import xllamacpp

        if self.weights != "packaged":
            self.write()
        r, params = self.request, xllamacpp.CommonParams()
        params.model.path = self.file
        params.n_parallel = self.questions * r["answers"]
        params.kv_unified = self.unified  # a prompt's cells are shared by its answers
        own = r["answers"] * (r["new"] + 8)
        shared = r["longest"] + 8 if self.unified else r["answers"] * (r["longest"] + 8)
        # a prompt may begin while the last answers of another still hold their prompt's cells
        params.n_ctx = 2 * self.questions * (shared + own)
        params.n_batch, params.n_ubatch = self.batch, self.ubatch
        params.flash_attn_type = getattr(
            xllamacpp.llama_flash_attn_type,
            "LLAMA_FLASH_ATTN_TYPE_" + ("ENABLED" if self.flash else "DISABLED"),
        )
        params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{self.cache}")
        for threads in (params.cpuparams, params.cpuparams_batch):
            threads.n_threads = int(os.environ["OMP_NUM_THREADS"])
        params.cache_ram_mib, params.warmup, params.fit_params, params.verbosity = 0, False, False, -1
        self.server = xllamacpp.Server(params)

    def draw(self, prompts, answers, new, end, fixed):
        request = {
            "prompt": prompts, "n_cmpl": answers, "n_predict": new, "return_tokens": True, "temperature": 1.0,
            "samplers": ["temperature"],  # no top-k, top-p, min-p, typical, penalties, DRY nor XTC
            "cache_prompt": False, "ignore_eos": fixed,
        }  # fmt: skip
        asked = urllib.request.Request(
            self.server.listening_address + "/completion", json.dumps(request).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(asked) as reply:
            drawn = [one["tokens"] for one in json.load(reply)]  # by prompt
        drawn = drawn if fixed else [kept(row, end) for row in drawn]
        return [drawn[i : i + answers] for i in range(0, len(drawn), answers)]


class LlamaCppF32(LlamaCpp):
    weights = "float32"


class LlamaCppBF16(LlamaCpp):
    weights = "bfloat16"


class Vllm(Engine):
    """vLLM's offline LLM. New weights are taken up in place, which is cheaper than to load it anew."""

    settings = {"sequences": 256, "batch_tokens": 4096, "block_size": 32, "cache_gib": 4, "eager": False}

    def prepare(self, **request):
        super().prepare(**request)
        if not hasattr(self, "engine"):
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self.cache_gib)
            # by itself it keeps one core for its scheduler
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{int(os.environ['OMP_NUM_THREADS']) - 1}"
            import vllm  # noqa: F401

    def load(self):
        from vllm import LLM

        if hasattr(self, "engine"):
            self.engine.collective_rpc("reload_weights")
            return
        self.engine = LLM(
            self.request["load"], skip_tokenizer_init=True, dtype=self.request["precision"],
            enable_prefix_caching=True, max_model_len=self.request["longest"] + self.request["new"],
            max_num_seqs=self.sequences, max_num_batched_tokens=self.batch_tokens,
            block_size=self.block_size, enforce_eager=self.eager,
        )  # fmt: skip

    def draw(self, prompts, answers, new, end, fixed):
        from vllm import SamplingParams

        self.engine.reset_prefix_cache()  # or it would know the prompts from the run before
        params = SamplingParams(
            n=answers, temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, max_tokens=new, detokenize=False,
            ignore_eos=fixed, stop_token_ids=None if fixed else list(end),
        )  # fmt: skip
        drawn = self.engine.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [[list(one.token_ids) for one in of_prompt.outputs] for of_prompt in drawn]


ENGINES = {
    "generate": Generate,
    "generate_batch": GenerateBatch,
    "llama.cpp-f32": LlamaCppF32,
    "llama.cpp-bf16": LlamaCppBF16,
    "llama.cpp-packaged": LlamaCpp,
    "vllm": Vllm,
}
IN_OUR_PYTHON = ("generate", "generate_batch")  # transformers is there as well


def main():
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints goes to its log
    serve(ENGINES[sys.argv[1]](json.loads(sys.argv[2])), sys.stdin, replies)


if __name__ == "__main__":
    main()
