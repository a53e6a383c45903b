"""Folders that are not what they seem: each loads, or is one sentence and exit status 2 before anything is written."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import analysis.command  # noqa: F401  imported here, so that forked scripts need not
import models
from models.folders import check_quantization
from models.generation import answer
from tests.errors import refused
from tests.families import FAMILIES
from tests.hub_folders import write_shards
from tests.models import llava, llava_processor, picture
from tests.shell import run
from tests.test_loading import copy

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 4977\n"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of LLaVA's family in three shards, with the processor's settings in their older files."""
    folder = tmp_path_factory.mktemp("whole")
    model, processor = llava(), llava_processor()
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    settings = edited(folder / "processor_config.json")
    images = settings.pop("image_processor")
    (folder / "preprocessor_config.json").write_text(json.dumps(images | {"processor_class": "LlavaProcessor"}))
    (folder / "processor_config.json").write_text(json.dumps(settings))
    write_shards(folder, dict(model.state_dict()))
    return folder


@pytest.fixture
def photo(tmp_path):
    picture().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def edited(path, **changes):
    """Content of a JSON file, in which these fields are replaced; None removes one."""
    fields = json.loads(path.read_text()) if path.is_file() else {}
    fields = {name: value for name, value in {**fields, **changes}.items() if value is not None}
    path.write_text(json.dumps(fields))
    return fields


def config(**changes):
    return lambda folder: edited(folder / "config.json", **changes)


def remove(*names):
    return lambda folder: [file.unlink() for name in names for file in folder.glob(name)]


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def adapter(folder):
    edited(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="llava-hf/llava-1.5-7b-hf", r=8)
    save_file({"base_model.model.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")


def adapter_only(folder):
    remove("*")(folder)
    adapter(folder)


def pickled(folder):
    weights = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    remove("model*")(folder)
    torch.save(weights, folder / "pytorch_model.bin")


def gguf(folder):
    remove("*")(folder)
    (folder / "llava-v1.5-7b-Q4_K_M.gguf").write_bytes(b"GGUF")


def shard(folder):
    return sorted(folder.glob("*.safetensors"))[1]


def index_names(value):
    def plant(folder):
        index = edited(folder / "model.safetensors.index.json")
        first = next(iter(index["weight_map"]))
        edited(folder / "model.safetensors.index.json", weight_map=index["weight_map"] | {first: value})

    return plant


def inner_folder(folder):
    (folder / "snapshots" / "abc").mkdir(parents=True)
    for file in folder.glob("*.*"):
        file.rename(folder / "snapshots" / "abc" / file.name)


def sentencepiece(folder):
    remove("tokenizer.json")(folder)
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")


def not_a_number(folder):
    file = next(file for file in sorted(folder.glob("*.safetensors")) if any("layers.1." in k for k in load_file(file)))
    weights = load_file(file)
    name = next(name for name in weights if "layers.1." in name)
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def own_processor(folder):
    edited(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "own.Own"}, image_processor_type="Own")
    (folder / "own.py").write_text("raise SystemExit('code of the checkpoint ran')\n")


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
PACKED = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}}
TEXT_ONLY = "{% for message in messages %}user : {{ message['content'][-1]['text'] }} {% endfor %}assistant :"

REFUSED = {
    "LoRA adapter beside its base": (
        adapter,
        "holds an adapter .*would not be applied; merge it into its base.*'llava-hf/llava-1.5-7b-hf'.*merge_and_unload",
    ),
    "adapter only": (adapter_only, "holds an adapter .*merge it into its base"),
    "AWQ": (config(quantization_config=AWQ), "quantised by AWQ, which needs a GPU and gptqmodel .not installed.; load"),
    "GPTQ": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "by GPTQ, which needs a GPU and optimum ",
    ),
    "bitsandbytes, 4 bits": (config(quantization_config=FOUR), "by bitsandbytes, which needs a GPU and bitsandbytes"),
    "compressed-tensors": (config(quantization_config=PACKED), "by compressed-tensors, which needs a GPU and compres"),
    "another quantisation": (config(quantization_config={"quant_method": "x9"}), "by 'x9', which is not supported"),
    "GGUF": (gguf, "holds no config.json.*but the GGUF file llava-v1.5-7b-Q4_K_M.gguf; .*safetensors release"),
    "text-only chat template": (
        write("chat_template.jinja", TEXT_ONLY),
        "chat template writes no '<image>'.*text alone.*vision-language release",
    ),
    "no chat template": (remove("chat_template.jinja"), "has no chat template .chat_template.jinja"),
    "original LLaVA": (
        config(architectures=["LlavaLlamaForCausalLM"], mm_vision_tower="openai/clip-vit-large-patch14-336"),
        "LLaVA's original format .*use the converted release, llava-hf/llava-1.5-7b-hf",
    ),
    "tokenizer.model only": (sentencepiece, "tokenizer.model alone, which needs sentencepiece protobuf: pip install"),
    "no tokenizer": (remove("tokenizer.json"), "holds no tokenizer .tokenizer.json.; copy tokenizer.json"),
    "LFS pointers of weights": (
        lambda folder: [file.write_text(POINTER) for file in folder.glob("model-*")],
        "Git LFS pointers in place of model-00001-of-00003.safetensors, model-0.*; fetch the files: git -C .* lfs pull",
    ),
    "LFS pointer of tokenizer.json": (
        write("tokenizer.json", POINTER),
        "LFS pointers in place of tokenizer.json; fetch",
    ),
    "pickled only": (pickled, "only pickled ones .pytorch_model.bin.; convert them once: python -c '"),
    "no weights": (remove("model*"), "holds no weights that can be loaded .model.safetensors.; download the weights"),
    "no index": (
        remove("*.index.json"),
        "but model-00001-of-00003.safetensors, .* without model.safetensors.index.json",
    ),
    "damaged index": (
        write("model.safetensors.index.json", "{"),
        "index.json of .* is damaged .JSONDecodeError.; down",
    ),
    "index that leads up": (index_names("../weights.safetensors"), "names a file outside its folder, '../weights"),
    "index with an absolute path": (index_names("/etc/weights"), "names a file outside its folder, '/etc/weights'"),
    "missing shard": (lambda folder: shard(folder).unlink(), "1 of the 3 shards .* are missing: model-00002-of-00003"),
    "empty shard": (lambda folder: shard(folder).write_bytes(b""), "weight file model-00002-of-.* is empty; download"),
    "cut-off shard": (
        lambda folder: shard(folder).write_bytes(shard(folder).read_bytes()[:-100]),
        "model-00002-of-.* is cut off .*,",
    ),
    "page of a web server": (
        lambda folder: shard(folder).write_text("<html>404</html>" * 99),
        "or no safetensors file",
    ),
    "NaN in a shard": (not_a_number, "are not finite, first in model.*layers.1.* .1 of .* values.; download the file"),
    "no model_type": (config(model_type=None), "names no model_type.*take config.json from the release"),
    "newer family": (
        config(model_type="tomorrow_vl", transformers_version="9.1.0"),
        "'tomorrow_vl', which transformers .* does not know .it was saved by 9.1.0: pip install --upgrade transformers",
    ),
    "code of its own": (
        config(model_type="own_vl", auto_map={"AutoConfig": "own.Own"}),
        "the checkpoint's own code .auto_map. is never",
    ),
    "processor of its own": (own_processor, "the processor of .* cannot be read: it needs code of its own .auto_map."),
    "no preprocessor_config": (
        remove("preprocessor_config.json"),
        "processor of .* cannot be read: .*preprocessor_config",
    ),
    "image processor of another family": (
        lambda folder: edited(
            folder / "preprocessor_config.json",
            image_processor_type="FuyuImageProcessor",
            processor_class="FuyuProcessor",
        ),
        "model and processor fail on a blank image .TypeError.*take all files from one release of the llava family",
    ),
    "cache folder of the hub": (
        inner_folder,
        "holds no config.json.*; one lies in '.*snapshots/abc': pass that folder",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_odd_folder_is_one_sentence(whole, tmp_path, photo, name):
    plant, sentence = REFUSED[name]
    folder = copy(whole, tmp_path)
    plant(folder)
    out = tmp_path / "out"
    command = ["--model", folder, "--image", photo, "--prompt", "what ?", "--out-dir", out]
    ended = run("attention_rollout_llava.py", *command)
    assert ended.returncode == 2 and not out.exists(), ended.stderr
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("error: ") and re.search(sentence, line), line


@pytest.mark.parametrize("script", ["evaluate.py", "find_sink_dimensions_simple.py", "text_only_llm_analysis_llava.py"])
@pytest.mark.parametrize("name", ["LoRA adapter beside its base", "original LLaVA", "cut-off shard"])
def test_every_way_of_loading_refuses(whole, tmp_path, script, name):
    """Scripts that load a model of text alone, and the one that reads its config first."""
    plant, sentence = REFUSED[name]
    folder = copy(whole, tmp_path)
    plant(folder)
    (tmp_path / "questions.jsonl").write_text('{"question": "what ?", "answer": "red", "image": "photo.png"}\n')
    picture().save(tmp_path / "photo.png")
    flags = {
        "evaluate.py": ["--dataset", tmp_path / "questions.jsonl", "--data-root", tmp_path, "--out-dir"],
        "find_sink_dimensions_simple.py": ["--text", "README.md", "--output"],
        "text_only_llm_analysis_llava.py": ["--out-dir"],
    }
    ended = run(script, "--model", folder, *flags[script], tmp_path / "out")
    assert ended.returncode == 2 and not (tmp_path / "out").exists(), ended.stderr
    assert re.search(f"^error: .*{sentence}", ended.stderr, re.M) and "Traceback" not in ended.stderr


@torch.no_grad()
@pytest.mark.parametrize("plant", [pickled, remove("nothing")], ids=["beside pickled weights", "as it is"])
def test_folder_that_loads(whole, tmp_path, plant):
    folder = copy(whole, tmp_path)
    plant(folder)
    for file in whole.glob("model*"):
        shutil.copy(file, folder)
    check_loads(folder, llava())


def check_loads(folder, reference, **tolerance):
    """The folder loads with every weight equal to that of `reference`."""
    model, _ = models.load(str(folder))
    expected = reference.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, expected[name], **(tolerance or {"rtol": 0, "atol": 0}))
    return model


@pytest.mark.slow
def test_pickled_weights_load_after_the_command_that_the_sentence_names(whole, tmp_path):
    folder = copy(whole, tmp_path)
    pickled(folder)
    with pytest.raises(ValueError) as error:
        models.load(str(folder))
    command = shlex.split(str(error.value).partition("convert them once: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    check_loads(folder, llava())


def test_weights_of_several_number_types_become_one(whole, tmp_path):
    folder = copy(whole, tmp_path)
    file = shard(folder)
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    check_loads(folder, llava(), rtol=2**-8, atol=1e-6)  # bfloat16 keeps eight bits


def test_fp8_weights_are_dequantised(tmp_path):
    """Blocks of 128 x 128 with a scale each, the rest in bfloat16, as the FP8 releases of Qwen3-VL store them."""
    reference, processor = llava(), llava_processor()
    reference.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = {}
    for name, value in load_file(tmp_path / "model.safetensors").items():
        if name.startswith("language_model.model.layers") and value.ndim == 2:
            scale = value.abs().max() / 448  # largest number of float8_e4m3fn; every matrix here is one block
            weights[name] = (value / scale).to(torch.float8_e4m3fn)
            weights[name.replace(".weight", ".weight_scale_inv")] = scale.view(1, 1)
        else:
            weights[name] = value.bfloat16()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    skipped = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    edited(tmp_path / "config.json", quantization_config=stored | {"modules_to_not_convert": skipped}, dtype="bfloat16")
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = models.load(str(tmp_path), dtype=str(dtype).removeprefix("torch."))
        expected = reference.state_dict()
        for name, weight in model.state_dict().items():
            assert weight.dtype == dtype
            error = (weight - expected[name]).norm() / expected[name].norm().clamp(min=1e-9)
            assert error < 2**-4, name  # float8_e4m3fn keeps four bits
        assert answer(model, processor, [picture()], "what ?", max_new_tokens=2).tokens


def test_adapter_on_the_hub_is_refused(monkeypatch, tmp_path):
    adapter(tmp_path)
    monkeypatch.setattr("models.folders.cached_file", lambda *where, **more: str(tmp_path / "adapter_config.json"))
    with pytest.raises(ValueError, match="^'someone/lora' holds an adapter"):
        models.load("someone/lora")


@pytest.mark.parametrize(
    "method, packages", [("awq", "gptqmodel"), ("gptq", "optimum gptqmodel"), ("bitsandbytes", "bitsandbytes")]
)
def test_package_of_quantised_weights_on_a_gpu(monkeypatch, method, packages):
    settings = transformers.LlavaConfig(quantization_config={"quant_method": method})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with refused("quantised-without-package"):
        check_quantization(settings, "x", "auto")
    monkeypatch.setattr("models.folders.find_spec", lambda name: True)
    check_quantization(settings, "x", "auto")
    with refused("quantised-without-gpu"):
        check_quantization(settings, "x", {"": "cpu"})


def test_code_of_a_known_family_is_not_asked_for(whole, tmp_path, monkeypatch):
    """A config that names code beside a family that transformers knows: the family's own classes are used."""
    folder = copy(whole, tmp_path)
    code = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model", "AutoProcessor": "own.Processor"}
    edited(folder / "config.json", auto_map=code)
    edited(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked at the terminal"))
    check_loads(folder, llava())
    assert not (tmp_path / "ran").exists()


def test_rotary_base_outside_the_text_config(tmp_path):
    """adept/fuyu-8b: rope_theta 25000 at the top, and a text_config of which transformers makes 10000."""
    model, processor = (make() for make in FAMILIES["fuyu"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["text_config"]["rope_parameters"]
    edited(tmp_path / "config.json", text_config=fields["text_config"], rope_theta=25000.0)
    loaded, read = models.load(str(tmp_path))
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
