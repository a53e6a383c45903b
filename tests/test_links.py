"""Symbolic links that lead out of a data root: every reader refuses them, and follows them with --follow-links."""

import json
import os

import pytest
from PIL import Image

import attention_rollout_llava as script
from data import scanpaths
from data.folders import LINKED, OUTSIDE, Links, following_links, root_fault
from data.samples import Samples, collect
from tests.runs import table
from tests.settings import configure


@pytest.fixture
def root(tmp_path):
    """A folder with an image of its own, a link to one elsewhere and a link to a folder elsewhere."""
    root = tmp_path / "root"
    for name in ("root/own.png", "elsewhere/a.png", "elsewhere/sub/own.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "red").save(tmp_path / name)
    os.symlink("../elsewhere/a.png", root / "link.png")
    os.symlink("../elsewhere", root / "linked")
    os.symlink("own.png", root / "inner.png")
    return root


@pytest.mark.parametrize(
    "name, fault, followed",
    [
        ("own.png", "", ""),
        ("linked/../own.png", OUTSIDE, OUTSIDE),  # the system takes the link before it goes up
        ("inner.png", "", ""),
        ("none.png", "", ""),
        ("link.png", LINKED, ""),
        ("linked/a.png", LINKED, ""),
        ("../elsewhere/a.png", OUTSIDE, OUTSIDE),
        ("linked/../../elsewhere/a.png", OUTSIDE, OUTSIDE),
        ("/etc/passwd", OUTSIDE, OUTSIDE),
    ],
)
def test_what_leads_out_of_a_root(root, name, fault, followed):
    assert root_fault(root / name, root) == fault
    with following_links():
        assert root_fault(root / name, root) == followed
        with following_links(Links().follow_links):
            assert root_fault(root / name, root) == fault
    assert root_fault(root / name, root) == fault


def test_a_root_that_is_a_link_itself_is_no_link_out_of_it(root, tmp_path):
    os.symlink(root, tmp_path / "alias")
    assert root_fault(tmp_path / "alias" / "own.png", tmp_path / "alias") == ""
    assert root_fault(tmp_path / "alias" / "link.png", tmp_path / "alias") == LINKED


def test_a_scanpath_of_a_linked_image_is_known_by_it(root):
    record = {"image": "link.png", "units": "pixels", "fixations": [{"x": 3, "y": 4}]}
    file = root / "gaze.jsonl"
    file.write_text(json.dumps(record) + "\n")
    assert [skip.reason for skip in scanpaths.read(file).skipped] == [LINKED]
    with following_links():
        known = scanpaths.read(file)
    assert known.of(root / "link.png").fixations[0][1:3] == (3, 4)


def test_a_script_follows_links_when_asked(root, tmp_path, capsys):
    def run(**flags):
        out = tmp_path / f"out{len(flags)}"
        config = configure(script,
            model="tiny-llava", data_root=str(root), prompt="what ?", max_new_tokens=1, out_dir=str(out), **flags
        )
        assert script.main(config) == 0
        return [row["sample"] for row in table(out)]

    assert run() == ["inner", "own"]
    assert "note: passed over in" in (output := capsys.readouterr().err) and "--follow-links" in output
    assert run(follow_links=True) == ["inner", "link", "a", "linked/sub/own", "own"]
    assert "passed over" not in capsys.readouterr().err


def test_images_of_one_name_in_several_folders_stay_apart(root):
    with following_links():
        samples = collect(Samples(data_root=str(root), prompt="what ?", limit=0))[0]
    assert [sample.name for sample in samples] == ["inner", "link", "a", "linked/sub/own", "own"]
    assert len({sample.path for sample in samples}) == 5


def test_a_folder_with_nothing_but_links_names_the_flag(root):
    (root / "own.png").unlink()
    (root / "inner.png").unlink()
    with pytest.raises(FileNotFoundError, match="it holds 2 links that lead out of the folder .--follow-links"):
        collect(Samples(data_root=str(root), prompt="what ?", limit=0))
