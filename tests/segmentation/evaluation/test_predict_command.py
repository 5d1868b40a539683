"""`ema-ops predict` as users call it: a picture, a folder, a video, and what they get wrong."""

import importlib.util
from contextlib import contextmanager

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ema_ops import PRESETS
from ema_ops.cli import main
from ema_ops.segmentation.data import voc_palette
from ema_ops.segmentation.models import EMANet, export_network, save_network
from ema_ops.segmentation.training.distributed import World


@pytest.fixture
def predict(checkpoint, tmp_path):
    """Calls the command; results go to `tmp_path`/out."""

    def run(path, *options, network=checkpoint):
        command = ["predict", str(path), "--checkpoint", str(network), "--out", str(tmp_path / "out"), "--workers", "0"]
        return main([*command, *options])

    return run


@pytest.fixture
def folder(root, tmp_path):
    """Three good pictures, two of them of one stem, one turned, and a broken one."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    picture = Image.open(root / "images" / "0.png")
    picture.save(folder / "a.jpg")
    picture.save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "deep" / "turned.jpg", exif=exif)
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:400])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_picture(predict, root, tmp_path, capsys):
    assert predict(root / "images" / "2.png") == 0
    assert files(tmp_path / "out") == ["masks/2.png", "overlays/2.png"]
    mask = Image.open(tmp_path / "out" / "masks" / "2.png")
    assert (mask.mode, mask.size) == ("P", (40, 17))
    np.testing.assert_array_equal(np.reshape(mask.getpalette()[: 3 * 256], (-1, 3)), voc_palette())
    assert np.asarray(mask).max() < 3
    assert Image.open(tmp_path / "out" / "overlays" / "2.png").mode == "RGB"
    assert capsys.readouterr().out.startswith("1 of 1 pictures: ")


def test_folder(predict, folder, tmp_path, capsys):
    assert predict(folder, "--batch", "2", "--workers", "1") == 1
    names = ["a.jpg.png", "a.png.png", "deep/turned.png"]
    assert files(tmp_path / "out") == [f"{kind}/{name}" for kind in ("masks", "overlays") for name in names]
    assert Image.open(tmp_path / "out" / "masks" / "deep" / "turned.png").size == (24, 31)
    captured = capsys.readouterr()
    assert f"ema-ops predict: {folder / 'broken.jpg'} is truncated or damaged" in captured.err
    assert "3 of 4 pictures" in captured.out


def test_two_processes_share_a_folder(predict, folder, checkpoint, tmp_path, two_processes):
    assert predict(folder) == 1
    command = ["predict", str(folder), "--checkpoint", str(checkpoint), "--workers", "0", "--device", "cpu"]
    outputs = two_processes(*command, "--out", str(tmp_path / "two"))
    # both, and at the end: what one of them could not read has not stopped the other
    assert [status for status, *_ in outputs] == [1, 1], outputs
    assert files(tmp_path / "two") == files(tmp_path / "out")
    for name in files(tmp_path / "two"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    (_, said, error), (_, other_said, other_error) = outputs
    assert said.startswith("3 of 4 pictures: ")
    assert other_said == ""
    assert (error + other_error).count("broken.jpg is truncated or damaged") == 1


def test_video_is_for_one_process(predict, video, capsys, monkeypatch):
    @contextmanager
    def two(*_, **options):
        yield World(0, 2, torch.device("cpu"))

    monkeypatch.setattr("ema_ops.segmentation.training.distributed.world", two)
    assert predict(video) == 2
    assert capsys.readouterr().err == f"ema-ops predict: {video} is a video, for 2 processes: expected one process\n"


def test_results_inside_the_folder_are_not_read_again(folder, checkpoint, tmp_path, capsys):
    (folder / "broken.jpg").unlink()
    command = ["predict", str(folder), "--checkpoint", str(checkpoint), "--out", str(folder / "deep" / "out")]
    for _ in range(2):
        assert main([*command, "--workers", "0"]) == 0
        assert "3 of 3 pictures" in capsys.readouterr().out


def test_options_reach_the_network(predict, root, tmp_path):
    def mask(*options):
        assert predict(root / "images" / "0.png", *options) == 0
        return np.array(Image.open(tmp_path / "out" / "masks" / "0.png"))

    plain = mask()
    np.testing.assert_array_equal(mask("--channels-last", "--batch", "4"), plain)
    for options in (
        ["--scales", "0.5", "1.5", "--flip"],
        ["--mode", "slide", "--window", "12", "12", "--stride", "6", "6"],
        ["--iters", "1"],
    ):
        other = mask(*options)
        assert other.shape == plain.shape
        assert (other != plain).any(), options
    # half the precision moves borders between classes at most
    assert (mask("--precision", "bfloat16") != plain).mean() < 0.1


def test_compiled_network_predicts_the_same(predict, root, tmp_path, compiled):
    masks = []
    for options in ([], ["--compile"]):
        assert predict(root / "images" / "0.png", *options) == 0
        masks.append((tmp_path / "out" / "masks" / "0.png").read_bytes())
    assert masks[0] == masks[1]
    assert len(compiled) == 1


def test_alpha_1_shows_the_colours_only(predict, root, tmp_path):
    assert predict(root / "images" / "0.png", "--alpha", "1") == 0
    mask, overlay = (Image.open(tmp_path / "out" / kind / "0.png") for kind in ("masks", "overlays"))
    painted = np.array(mask) > 0
    np.testing.assert_array_equal(np.array(overlay)[painted], np.array(mask.convert("RGB"))[painted])


def test_colours_of_the_checkpoint(predict, network, root, tmp_path):
    colours = [[1, 2, 3], [40, 50, 60], [70, 80, 90]]
    save_network(tmp_path / "net.pt", network, classes=("sky", "sea", "sand"), palette=colours)
    assert predict(root / "images" / "0.png", network=tmp_path / "net.pt") == 0
    mask = Image.open(tmp_path / "out" / "masks" / "0.png")
    assert mask.getpalette()[:9] == [1, 2, 3, 40, 50, 60, 70, 80, 90]


def test_colours_of_a_checkpoint_of_mmsegmentation(predict, root, tmp_path):
    network = EMANet(3, "resnet50", 16, num_bases=4, channels=8, head="mmsegmentation", **PRESETS["mmsegmentation"])
    colours = [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
    names = ("sky", "sea", "sand")
    export_network(network, tmp_path / "net.pth", target="mmsegmentation", classes=names, palette=colours)
    assert predict(root / "images" / "0.png", network=tmp_path / "net.pth") == 0
    assert Image.open(tmp_path / "out" / "masks" / "0.png").getpalette()[:9] == [9, 8, 7, 6, 5, 4, 3, 2, 1]


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuvj444p"
        for level in range(0, 240, 40):
            picture = np.full((24, 32, 3), level, np.uint8)
            picture[:, level // 10 :] = (255, level, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_video(predict, video, tmp_path, capsys):
    assert predict(video, "--masks", "--batch", "4") == 0
    masks = [f"masks/clip/{number:06}.png" for number in range(6)]
    assert files(tmp_path / "out") == [*masks, "overlays/clip.mp4"]
    assert f"6 frames: {tmp_path / 'out' / 'overlays' / 'clip.mp4'}" in capsys.readouterr().out


def test_video_cut_short(predict, video, capsys):
    content = video.read_bytes()
    video.write_bytes(content[: content.rindex(b"\xff\xd8\xff")])
    assert predict(video) == 1
    captured = capsys.readouterr()
    assert "5 frames" in captured.out
    assert f"{video} is cut short, it should have 6 frames" in captured.err


def test_video_without_av(predict, video, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "av" else found(name))
    assert predict(video) == 2
    assert capsys.readouterr().err == ("ema-ops predict: not installed: av: expected `pip install 'ema_ops[video]'`\n")


def test_without_memory_the_file_is_named(predict, root, video, capsys, fail_at):
    fail_at(1, torch.OutOfMemoryError("CUDA out of memory"))
    assert predict(root / "images" / "2.png") == 2
    assert f"{root / 'images' / '2.png'}: no memory for pictures of 1 x 17 x 40" in capsys.readouterr().err
    fail_at(3, torch.OutOfMemoryError("CUDA out of memory"))
    assert predict(video) == 2
    assert f"{video}, frame 2: no memory for pictures of 1 x 24 x 32" in capsys.readouterr().err


def test_interrupted(predict, root, video, tmp_path, capsys, fail_at):
    fail_at(4, KeyboardInterrupt())
    assert predict(root / "images", "--workers", "1") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "ema-ops predict: interrupted"
    # what was written is whole
    done = files(tmp_path / "out" / "masks")
    assert 1 <= len(done) <= 3
    for name in done:
        Image.open(tmp_path / "out" / "masks" / name).load()
    fail_at(4, KeyboardInterrupt())
    assert predict(video) == 130
    assert not (tmp_path / "out" / "overlays" / "clip.mp4").exists()


def test_wrong_inputs(predict, root, tmp_path, capsys):
    def error(path, *options, status=2):
        assert predict(path, *options) == status
        return capsys.readouterr().err

    good = root / "images" / "0.png"
    assert "gone.jpg does not exist: expected a picture, a folder or a video" in error(tmp_path / "gone.jpg")
    (tmp_path / "empty").mkdir()
    assert "empty has no pictures: expected files ending in .jpg" in error(tmp_path / "empty")
    (tmp_path / "text.doc").write_text("no picture")
    assert "text.doc is not a picture" in error(tmp_path / "text.doc", status=1)
    (tmp_path / "bad.mp4").write_text("no video")
    assert "bad.mp4 cannot be opened as a video" in error(tmp_path / "bad.mp4")
    assert "alpha is 2.0: expected 0 to 1" in error(good, "--alpha", "2")
    assert "batch is 0: expected at least 1" in error(good, "--batch", "0")
    assert "workers is -1: expected 0 or more" in error(good, "--workers", "-1")
    assert "expected mode 'slide'" in error(good, "--window", "8", "8")
    assert "no.pt does not exist" in error(good, "--checkpoint", str(tmp_path / "no.pt"))


def test_wrong_out(predict, folder, checkpoint, tmp_path, capsys):
    assert predict(folder, "--out", str(folder)) == 2
    assert f"out is {folder}, the folder of the pictures: expected another one" in capsys.readouterr().err
    assert predict(folder, "--out", str(checkpoint)) == 2
    assert f"out is {checkpoint}, a file: expected a folder" in capsys.readouterr().err
    # a full or protected disk shows when results are written
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").write_text("a file in the way")
    assert predict(folder / "a.png") == 2
    assert "masks/a.png cannot be written" in capsys.readouterr().err
