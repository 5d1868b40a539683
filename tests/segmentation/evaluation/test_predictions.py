"""Masks and overlays of pictures and videos: sizes, the same classes as evaluation, and what happens on failure."""

import re
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ema_ops.segmentation.data import voc_palette
from ema_ops.segmentation.evaluation import Inference, evaluate
from ema_ops.segmentation.evaluation.drawing import Painter
from ema_ops.segmentation.evaluation.metric import ConfusionCounter
from ema_ops.segmentation.evaluation.predict import Frame, Predictor, predict_pictures
from ema_ops.segmentation.evaluation.video import predict_video

CPU = torch.device("cpu")


@pytest.fixture
def predictor(network):
    return Predictor(network, 3, Inference(), CPU, batch=3)


@pytest.fixture
def painter(dataset):
    return Painter(dataset.classes, voc_palette())


@pytest.fixture
def write_video(tmp_path):
    """Writes a video of frames uint8 [H, W, 3] and returns its path."""

    def write(frames, name="clip.mp4", codec="libx264", rate=10, pix_fmt="yuv444p", aspect=None):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = pix_fmt
            if aspect is not None:
                stream.sample_aspect_ratio = aspect
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture
def frames():
    """Twelve frames, 36 x 50: a picture that moves."""
    y, x = np.mgrid[:36, :50]
    picture = np.stack([5 * x, 7 * y, 255 - 5 * x], axis=2).astype(np.uint8)
    return [np.roll(picture, 4 * number, axis=1) for number in range(12)]


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return (
            stream.codec_context.name,
            stream.average_rate,
            [f.to_ndarray(format="rgb24") for f in container.decode(stream)],
        )


def test_masks_have_the_classes_that_evaluation_judges(predictor, painter, network, dataset, root, tmp_path):
    paths = sorted((root / "images").iterdir())
    done = []
    broken = predict_pictures(
        predictor, painter, paths, root, tmp_path, workers=2, done=lambda path, error: done.append((path, error))
    )
    assert broken == 0
    assert sorted(done) == [(path, "") for path in paths]
    counter = ConfusionCounter(3, CPU)
    for number, (image, mask) in enumerate(dataset):
        found = Image.open(tmp_path / "masks" / "images" / f"{number}.png")
        assert found.mode == "P"
        assert found.size == (image.shape[2], image.shape[1])
        assert Image.open(tmp_path / "overlays" / "images" / f"{number}.png").size == found.size
        counter.update(torch.from_numpy(np.array(found)), mask.to(torch.uint8))
    assert torch.equal(counter.compute().confusion, evaluate(network, dataset).confusion)


def test_broken_picture_is_told_and_counted(predictor, painter, tmp_path, root):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    Image.open(root / "images" / "0.png").save(tmp_path / "in" / "good.png")
    errors = {}
    paths = sorted((tmp_path / "in").iterdir())
    broken = predict_pictures(predictor, painter, paths, tmp_path / "in", tmp_path, done=errors.__setitem__)
    assert broken == 1
    assert "bad.jpg" in errors[paths[0]]
    assert errors[paths[1]] == ""
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["good.png"]


def test_result_that_cannot_be_written(predictor, painter, root, tmp_path):
    (tmp_path / "masks").write_text("a file in the way")
    with pytest.raises(OSError, match=r"masks/0\.png cannot be written"):
        predict_pictures(predictor, painter, [root / "images" / "0.png"], root / "images", tmp_path)


def test_picture_in_the_folder_of_results_is_not_overwritten(predictor, painter, tmp_path):
    path = tmp_path / "masks" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(ValueError, match=r"masks/a\.png would be overwritten"):
        predict_pictures(predictor, painter, [path], path.parent, tmp_path)


def test_a_batch_is_started_before_the_last_one_is_handed_on(network):
    events = []
    network_of_events = torch.nn.Module()
    network_of_events.forward = lambda images: (events.append("judge"), network(images))[1]
    predictor = Predictor(network_of_events, 3, Inference(), CPU)
    for prediction in predictor(Frame(key, torch.zeros(8, 8, 3, dtype=torch.uint8)) for key in range(3)):
        events.append(prediction.key)
    assert events == ["judge", "judge", 0, "judge", 1, 2]


def test_wrong_batch_of_predictor(network):
    with pytest.raises(ValueError, match="batch is 0: expected at least 1"):
        Predictor(network, 3, Inference(), CPU, batch=0)


@pytest.mark.parametrize("cut", [(0, 0), (1, 1)], ids=["even", "odd"])
def test_video(predictor, painter, network, write_video, frames, tmp_path, cut):
    frames = [np.ascontiguousarray(frame[cut[0] :, cut[1] :]) for frame in frames]
    path = write_video(frames)
    told = []
    result = predict_video(
        predictor, painter, path, tmp_path / "out", masks=True, started=told.append, done=told.append
    )
    assert result == (tmp_path / "out" / "overlays" / "clip.mp4", 12, 12)
    assert told == [12, *range(12)]
    codec, rate, overlays = read_video(result.path)
    assert (codec, rate, len(overlays)) == ("h264", 10, 12)
    masks = sorted((tmp_path / "out" / "masks" / "clip").iterdir())
    assert [mask.name for mask in masks] == [f"{number:06}.png" for number in range(12)]
    decoded = read_video(path)[2]
    for number in (0, 7, 11):
        classes = np.array(Image.open(masks[number]))
        expected = next(predictor([Frame(0, torch.from_numpy(decoded[number]))]))
        np.testing.assert_array_equal(classes, expected.classes)
        drawn = np.asarray(painter.overlay(decoded[number], classes), dtype=np.int16)
        assert overlays[number].shape == drawn.shape
        # the right frame in its place, up to what compression loses
        error = [np.abs(overlays[place] - drawn).mean() for place in range(12)]
        assert int(np.argmin(error)) == number
        assert error[number] < 12


def test_video_of_another_codec_and_rate(predictor, painter, write_video, frames, tmp_path, monkeypatch):
    monkeypatch.setattr("ema_ops.segmentation.evaluation.video.CODECS", ("no-such-codec", "mpeg4"))
    path = write_video(frames, "clip.avi", "mpeg4", Fraction(30000, 1001), "yuv420p")
    codec, rate, overlays = read_video(predict_video(predictor, painter, path, tmp_path / "out").path)
    assert codec == "mpeg4"
    assert float(rate) == pytest.approx(30000 / 1001)
    assert len(overlays) == 12
    assert not (tmp_path / "out" / "masks").exists()


def test_video_that_players_turn(predictor, painter, write_video, frames, tmp_path):
    path = write_video(frames, aspect=Fraction(4, 3))
    content = path.read_bytes()
    # the matrix in the track's header, 16.16 fixed point: a point (x, y) is shown at (-y, x), a quarter clockwise
    matrix = struct.Struct(">9i")
    upright, turned = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    place = content.index(matrix.pack(*upright), content.index(b"tkhd"))
    path.write_bytes(content[:place] + matrix.pack(*turned) + content[place + matrix.size :])
    result = predict_video(predictor, painter, path, tmp_path / "out", masks=True)
    overlay = read_video(result.path)[2][0]
    with av.open(str(result.path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 4)
    shown = np.rot90(frames[0], -1)
    assert overlay.shape == shown.shape
    drawn = [
        painter.overlay(np.ascontiguousarray(p), next(predictor([Frame(0, torch.from_numpy(p.copy()))])).classes)
        for p in (shown, np.rot90(shown, 2))
    ]
    errors = [np.abs(overlay - np.asarray(picture, dtype=np.int16)).mean() for picture in drawn]
    assert errors[0] < 15 < errors[1]


def test_file_that_is_no_video(predictor, painter, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video at all" * 50)
    with pytest.raises(OSError, match=r"clip\.mp4 cannot be opened as a video"):
        predict_video(predictor, painter, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sound_alone_is_no_video(predictor, painter, tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(OSError, match=r"sound\.mp4 has no video in it"):
        predict_video(predictor, painter, path, tmp_path / "out")


@pytest.fixture
def noise_video(write_video):
    """Thirty frames of noise, each a JPEG of its own, and where these begin in the file."""
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(30)]
    path = write_video(noise, "clip.avi", "mjpeg", 10, "yuvj444p")
    starts = [match.start() for match in re.finditer(b"\xff\xd8\xff", path.read_bytes())]
    assert len(starts) == 30
    return path, starts


def test_damaged_video_leaves_no_half_result(predictor, painter, noise_video, tmp_path):
    path, starts = noise_video
    content = bytearray(path.read_bytes())
    content[starts[19] : starts[19] + 700] = bytes(700)
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"clip\.avi cannot be decoded after frame 19 \(.+\): expected a whole video"):
        predict_video(predictor, painter, path, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_video_that_is_cut_short_keeps_what_there_is(predictor, painter, noise_video, tmp_path):
    path, starts = noise_video
    path.write_bytes(path.read_bytes()[: starts[10]])
    result = predict_video(predictor, painter, path, tmp_path / "out")
    assert (result.frames, result.expected) == (10, 30)
    assert len(read_video(result.path)[2]) == 10


def test_overlay_that_cannot_be_written(predictor, painter, write_video, frames, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlays").write_text("a file in the way")
    with pytest.raises(OSError, match=r"overlays/clip\.mp4 cannot be written"):
        predict_video(predictor, painter, write_video(frames), tmp_path / "out")


def test_video_is_not_overwritten(predictor, painter, write_video, frames, tmp_path):
    (tmp_path / "overlays").mkdir()
    path = write_video(frames, "overlays/clip.mp4")
    with pytest.raises(ValueError, match=r"overlays/clip\.mp4 would be overwritten"):
        predict_video(predictor, painter, path, tmp_path)
