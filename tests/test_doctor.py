"""The doctor: what is in order is said to be, and planted faults are found, by name and with what to do."""

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from models import FAMILIES, TINY, doctor, embedded
from models.doctor import Config, Line
from models.folders import fingerprint
from tests.shell import run


def by_name(lines):
    return {line.name: line for line in lines}


@pytest.fixture
def root(tmp_path):
    """A project's folder with requirements of our choice."""

    def write(*requirements, python=">=3.11"):
        (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\nrequires-python = "{python}"\n')
        (tmp_path / "requirements.txt").write_text("\n".join(requirements))
        return tmp_path

    return write


def test_versions_beside_those_asked_for(root):
    have = metadata.version("numpy")
    found = by_name(doctor.versions(root(f"numpy=={have}", "scipy==999.1", "pillow==0.1", "sight-line-x==1.0")))
    assert found["numpy"] == Line("numpy", have)
    old, new, absent = found["scipy"], found["pillow"], found["sight-line-x"]
    assert (old.status, old.needed, old.remedy) == ("wrong", True, f"{sys.executable} -m pip install scipy==999.1")
    assert "older than 999.1" in old.found
    assert (new.status, new.needed) == ("wrong", False) and "newer than 0.1" in new.found
    assert (absent.status, absent.needed) == ("missing", True) and "asked for 1.0" in absent.found


def test_packages_of_the_tests_are_not_needed_to_run(root, monkeypatch):
    have = metadata.version("pytest")
    found = by_name(doctor.versions(root(f"pytest=={have}", "hypothesis==999.0", python=">=3.99")))
    assert found["for the tests"].found == "pytest"
    assert (found["hypothesis"].status, found["hypothesis"].needed) == ("wrong", False)
    python = found["python"]
    assert (python.status, python.needed) == ("wrong", True)
    assert python.remedy == "rm -rf .venv; PYTHON=python3.99 bash env_setup_llava.bash"


def test_a_package_that_does_not_import_is_wrong(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    line = doctor.package("scipy", metadata.version("scipy"))
    assert (line.status, line.needed) == ("wrong", True) and line.found.startswith("cannot be imported: ")


@pytest.mark.parametrize(
    "version, expected", [("2.13.0+cpu", (2, 13, 0)), (">=3.11", (3, 11)), ("3.0.0rc1", (3, 0, 0, 1))]
)
def test_numbers_of_a_version(version, expected):
    assert doctor.numbers(version) == expected


@pytest.mark.parametrize("dtype", doctor.CLOSE)
@pytest.mark.parametrize("masked", [False, True])
def test_kernels_of_a_cpu(dtype, masked):
    able = [name for name in doctor.KERNELS if doctor.runs(name, "cpu", dtype, masked)]
    assert able == ["flash", "math"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_kernels_of_a_gpu():
    assert doctor.runs("flash", "cuda", "bfloat16", masked=False)
    assert not doctor.runs("flash", "cuda", "float32", masked=False)
    assert doctor.runs("memory-efficient", "cuda", "float32", masked=True)


def flash():
    return not torch.backends.cuda.math_sdp_enabled()  # within `sdpa_kernel`, which lets only one kernel be


def fails(states, made):
    raise RuntimeError("planted")


@pytest.mark.parametrize("fault", [fails, lambda states, made: made * 1.1, lambda states, made: made * float("nan")])
def test_a_kernel_that_fails_or_lies_is_not_counted(monkeypatch, fault):
    plain = functional.scaled_dot_product_attention
    planted = lambda *states, **how: fault(states, plain(*states, **how)) if flash() else plain(*states, **how)  # noqa: E731
    monkeypatch.setattr(functional, "scaled_dot_product_attention", planted)
    line = by_name(doctor.kernels())["cpu float32 causal"]
    assert line.found.startswith("math; not here: flash, ")
    assert line.status == "missing" and not line.needed and "T x T memory" in line.remedy


def test_without_any_kernel_nothing_works(monkeypatch):
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *states, **how: fails(states, None))
    line = by_name(doctor.kernels())["cpu float32 causal"]
    assert line.found.startswith("none; ") and line.status == "missing" and line.needed


def test_every_embedded_model_is_known_and_as_it_came():
    assert doctor.EMBEDDED.keys() <= FAMILIES.keys()
    assert sorted(name for name, _ in doctor.EMBEDDED.values()) == embedded(), "write a new model into EMBEDDED"
    for name, came in doctor.EMBEDDED.values():
        assert fingerprint(TINY / name) == came, f"{name} has changed: write its new fingerprint into EMBEDDED"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A copy of the embedded LLaVA's folder to damage; the only model that the doctor then tries."""
    monkeypatch.setattr(doctor, "EMBEDDED", {"llava": doctor.EMBEDDED["llava"]})
    shutil.copytree(TINY / "tiny-llava", tmp_path / "tiny-llava")
    return tmp_path


def llava(tiny):
    return by_name(doctor.families(tiny))["llava"]


def test_a_whole_model_is_in_order(tiny):
    line = llava(tiny)
    assert line.status == "ok" and ": answers, recorded to " in line.found


def test_damaged_models_are_found(tiny):
    weights = tiny / "tiny-llava" / "model.safetensors"
    whole = weights.read_bytes()

    weights.write_bytes(whole[:100_000])
    line = llava(tiny)
    assert (line.status, line.needed) == ("wrong", True) and "weight file model.safetensors" in line.found
    assert line.remedy == "git checkout -- models/tiny/tiny-llava"

    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit, which no answer shows
    line = llava(tiny)
    assert line.status == "wrong" and "differ from those that came" in line.found and "says" not in line.found

    weights.write_bytes(whole)
    read = load_file(weights)
    save_file({name: value * 0 for name, value in read.items()}, weights, metadata={"format": "pt"})
    assert "of a blank image, not 'nothing .'" in llava(tiny).found or "the answer is empty" in llava(tiny).found

    (tiny / "tiny-llava" / "config.json").write_text('{"model_type": "fuyu"}')
    assert llava(tiny).status == "wrong"
    shutil.rmtree(tiny / "tiny-llava")
    assert llava(tiny).status == "missing"


def test_a_recording_that_is_not_eager_attention_is_found(tiny, monkeypatch):
    plain = doctor.tried("llava", str(tiny / "tiny-llava"))
    assert plain[0] == "nothing ." and plain[1] <= doctor.RECORDED
    from models import trace

    rows = trace.softmax_rows
    warm = lambda query, key, scaling, *more, **options: rows(query, key, 1.1 * scaling, *more, **options)  # noqa: E731
    monkeypatch.setattr(trace, "softmax_rows", warm)
    line = llava(tiny)
    assert line.status == "wrong" and "off eager's" in line.found and line.remedy == doctor.SETUP


def test_a_family_without_a_model_and_one_that_does_not_import(tiny, monkeypatch):
    planted = {"fuyu": FAMILIES["fuyu"], "qwen2_vl": ("models.modeling_nothing", "X"), "x": ("models.doctor", "X")}
    monkeypatch.setattr(doctor, "FAMILIES", planted)
    found = by_name(doctor.families(tiny))
    assert [found[name].status for name in planted] == ["ok", "wrong", "wrong"]
    assert "no embedded model" in found["fuyu"].found and found["others"].status == "ok"
    assert "models.modeling_nothing cannot be imported: ModuleNotFoundError: No module named" in found["qwen2_vl"].found


def test_a_checkpoint_is_checked_in_two_number_types(tiny, capsys):
    folder = tiny / "tiny-llava"
    assert doctor.main(Config(folder=str(folder))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "checkpoint" and lines[-1] == "all that is needed: ok" and len(lines) == 8
    (folder / "model.safetensors").write_bytes(b"")
    assert doctor.main(Config(folder=str(folder))) == 1
    assert "is empty; download it again" in capsys.readouterr().out


def test_a_batch_that_differs_is_found(tiny, monkeypatch):
    from models import loading

    model, processor = loading.load(str(tiny / "tiny-llava"))
    image = Image.new("RGB", (96, 96), "white")
    assert doctor.batch_error(model, processor, image) < 1e-5
    prepare = type(model).prepare

    def unmasked(self, processor, images, prompt, system=None):
        inputs, layouts = prepare(self, processor, images, prompt, system)
        inputs["attention_mask"][:] = 1  # padding is attended to
        return inputs, layouts

    monkeypatch.setattr(type(model), "prepare", unmasked)
    assert doctor.batch_error(model, processor, image) > 1e-2


def test_optional_packages(tmp_path, monkeypatch):
    for name, content in (("datasets", ""), ("torchvision", "raise RuntimeError('built for another torch')")):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "BROWSERS", ("no-such-browser",))
    found = by_name(doctor.optional())
    assert not any(line.needed for line in found.values())
    assert found["datasets"].status == "ok"
    missing = found["bitsandbytes"]
    assert (missing.status, missing.remedy) == ("missing", f"{sys.executable} -m pip install bitsandbytes")
    assert found["torchvision"].status == "wrong" and "built for another torch" in found["torchvision"].found
    assert (found["chromium"].status, found["chromium"].remedy) == ("missing", "apt-get install chromium")
    sys.modules.pop("datasets")


class Hub(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_the_hub_is_asked(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    [line] = doctor.hub()
    assert line.status == "ok" and line.found.endswith("answers")
    monkeypatch.setattr(Hub, "status", 503)
    [line] = doctor.hub()
    assert line.status == "missing" and "503" in line.found
    server.shutdown()
    server.server_close()
    [line] = doctor.hub()
    assert line.status == "missing" and not line.needed


def test_every_requirement_is_told():
    wanted = [line.split("==")[0] for line in (doctor.ROOT / "requirements.txt").read_text().split()]
    output = by_name(doctor.versions())
    assert [name for name in wanted if name not in output] == output["for the tests"].found.split(", ")


def test_whole_report_is_a_table(root, monkeypatch, capsys):
    """Where the versions are those asked for, everything that is needed is in order."""
    wanted = root(f"numpy=={metadata.version('numpy')}", f"pytest=={metadata.version('pytest')}")
    monkeypatch.setitem(doctor.SECTIONS, "versions", lambda: doctor.versions(wanted))
    status = doctor.main(Config())
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and lines[-1] == "all that is needed: ok" and len(lines) <= 45
    assert [line for line in lines if not line.startswith(" ")] == [*doctor.SECTIONS, lines[-1]]
    for line in lines:
        assert not line.startswith(" ") or line.endswith("ok") or ("missing (" in line and line.endswith(")")), line
    assert len({line.rindex("ok") for line in lines if line.startswith(" ") and line.endswith("  ok")}) == 1


def test_a_fault_is_the_exit_status_and_the_last_line(root, tiny, monkeypatch, capsys):
    """What cannot be checked at all is one line, and the rest is checked all the same."""
    sections = {"versions": lambda: doctor.versions(root("scipy==999.1")), "families": lambda: doctor.families(tiny)}
    monkeypatch.setattr(doctor, "SECTIONS", {**sections, "devices": lambda: fails(None, None)})
    assert doctor.main(Config()) == 1
    assert capsys.readouterr().out.endswith("needed and not in order: scipy, devices\n")
    assert doctor.main(Config(json=True)) == 1
    output = json.loads(capsys.readouterr().out)
    assert output["ok"] is False and [each["status"] for each in output["versions"]] == ["ok", "wrong"]
    assert output["families"][0]["status"] == "ok" and output["families"][0]["name"] == "llava"
    assert output["devices"][0]["found"] == "cannot be checked: RuntimeError: planted"


def test_wrong_use_and_help():
    wrong = run("models/doctor.py", "--jsno")
    assert wrong.returncode == 2 and "--jsno" in wrong.stdout + wrong.stderr
    output = run("models/doctor.py", "--help")
    assert output.returncode == 0 and "--online" in output.stdout and "python -m models.doctor" in output.stdout
