"""Views, windows and padding: what the network is shown, and what becomes of its logits."""

import errno
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ema_ops.segmentation.data import IGNORE
from ema_ops.segmentation.evaluation import Inference
from ema_ops.segmentation.evaluation.inference import evaluation_mode, padded_size, window_starts
from ema_ops.segmentation.evaluation.memory import naming_pictures
from ema_ops.segmentation.models import EMANet


class Spy(nn.Module):
    """A 1x1 convolution, which judges each pixel alone, that remembers what it was shown."""

    def __init__(self, output_stride=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])[:, :, None, None])
        self.seen = []
        if output_stride is not None:
            self.options = {"output_stride": output_stride}

    def forward(self, images):
        self.seen.append(images)
        return F.conv2d(images, self.weight)


@pytest.fixture
def images():
    return torch.randn(2, 3, 13, 22, generator=torch.Generator().manual_seed(0))


def logits(images):
    return Spy()(images)


def softmax(images):
    return logits(images).softmax(dim=1)


def resized(images, size, antialias=False):
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def test_padded_sizes():
    assert [padded_size(edge, 8, 1) for edge in (1, 2, 8, 9, 10, 375, 513)] == [1, 9, 9, 9, 17, 377, 513]
    assert [padded_size(edge, 8, 0) for edge in (1, 8, 9, 375, 512)] == [8, 8, 16, 376, 512]
    assert [padded_size(edge, 1, remainder) for edge in (1, 7) for remainder in (0, 1)] == [1, 1, 7, 7]


def test_whole_pads_with_the_mean_to_one_mod_output_stride(images):
    spy = Spy(output_stride=8)
    probabilities = Inference().probabilities(spy, images)
    (seen,) = spy.seen
    assert seen.shape == (2, 3, 17, 25)
    assert torch.equal(seen[..., :13, :22], images)
    assert not seen[..., 13:, :].any()
    assert not seen[..., 22:].any()
    torch.testing.assert_close(probabilities, softmax(images), rtol=0, atol=1e-6)


def test_whole_pads_to_a_multiple_where_corners_are_not_aligned(images):
    spy = Spy(output_stride=8)
    spy.options["align_corners"] = False
    Inference().classes(spy, images, 2)
    assert spy.seen[0].shape == (2, 3, 16, 24)


def test_pictures_as_mmsegmentation_trains_them_are_not_padded():
    torch.manual_seed(0)
    network = EMANet(4, "small", 4, 4, head="mmsegmentation", channels=8).eval()
    images = torch.randn(1, 3, 16, 32)
    expected = network(images).softmax(dim=1)
    torch.testing.assert_close(Inference().probabilities(network, images), expected)


def test_whole_as_it_is_without_output_stride(images):
    spy = Spy()
    Inference().classes(spy, images, 2)
    assert torch.equal(spy.seen[0], images)


def test_classes_are_the_most_probable(images):
    for inference in (Inference(), Inference(flip=True), Inference((0.5, 1)), Inference(mode="slide", window=(8, 9))):
        classes = inference.classes(Spy(), images, 2)
        assert classes.dtype == torch.uint8
        assert torch.equal(classes, inference.probabilities(Spy(), images).argmax(dim=1).to(torch.uint8))
        assert len(classes.unique()) == 2


@pytest.mark.parametrize("flip", [False, True])
def test_pixels_whose_logits_are_no_numbers_have_no_class(images, flip):
    images[0, 1, 5, 7] = torch.nan
    classes = Inference(flip=flip).classes(Spy(), images, 2)
    assert (classes == IGNORE).nonzero().tolist() == [[0, 5, 7]]


def test_number_of_classes_is_checked(images):
    with pytest.raises(ValueError, match=r"the network has 2 classes: expected 21 as the data set"):
        Inference().classes(Spy(), images, 21)


def test_mirrored_pictures_are_averaged_in(images):
    # a network that sees where it is
    class Ramp(nn.Module):
        def forward(self, images):
            ramp = torch.linspace(-2, 2, images.shape[-1]).expand(images.shape[-2:])
            return torch.stack([images[:, 0] + ramp, images[:, 1]], dim=1)

    expected = (Ramp()(images).softmax(1) + Ramp()(images.flip(-1)).softmax(1).flip(-1)) / 2
    found = Inference(flip=True).probabilities(Ramp(), images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, Inference().probabilities(Ramp(), images), atol=1e-2)


def test_scales_are_averaged_as_probabilities(images):
    spy = Spy()
    found = Inference((0.5, 1.0, 1.75)).probabilities(spy, images)
    # half of 13 is 6.5, rounded to the even number
    assert [tuple(seen.shape[-2:]) for seen in spy.seen] == [(6, 11), (13, 22), (23, 38)]
    views = [resized(images, size, antialias=True) for size in ((6, 11), (13, 22), (23, 38))]
    expected = sum(resized(logits(view), (13, 22)).softmax(dim=1) for view in views) / 3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_tiny_scale_keeps_a_pixel():
    found = Inference((0.01,)).probabilities(Spy(), torch.ones(1, 3, 4, 5))
    assert found.shape == (1, 2, 4, 5)


def test_window_starts_cover_and_stay_inside():
    assert window_starts(10, 10, 3) == [0]
    assert window_starts(11, 10, 3) == [0, 1]
    assert window_starts(16, 10, 3) == [0, 3, 6]
    assert window_starts(17, 10, 3) == [0, 3, 6, 7]


def test_slide_averages_logits_where_windows_overlap():
    class MeanOfWindow(nn.Module):
        def forward(self, images):
            mean = images[:, :1].mean(dim=(2, 3), keepdim=True).expand(-1, 1, *images.shape[-2:])
            return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    images = torch.zeros(1, 3, 1, 5)
    images[..., 0] = 3.0
    inference = Inference(mode="slide", window=(1, 3), stride=(1, 2))
    # windows 0-2 with mean 1 and 2-4 with mean 0
    expected = torch.tensor([1, 1, 0.5, 0, 0]).sigmoid()
    torch.testing.assert_close(inference.probabilities(MeanOfWindow(), images)[0, 0, 0], expected)


def test_slide_of_a_network_without_context_is_whole(images):
    spy = Spy(output_stride=8)
    found = Inference(mode="slide", window=(8, 9), stride=(5, 9)).probabilities(spy, images)
    assert [tuple(seen.shape) for seen in spy.seen] == [(2, 3, 8, 9)] * 6
    torch.testing.assert_close(found, softmax(images), rtol=0, atol=1e-6)


def test_pictures_smaller_than_the_window_are_padded(images):
    spy = Spy()
    found = Inference(mode="slide", window=(16, 16)).probabilities(spy, images)
    assert [tuple(seen.shape[-2:]) for seen in spy.seen] == [(16, 16), (16, 16)]
    assert not spy.seen[0][..., 13:, :].any()
    torch.testing.assert_close(found, softmax(images), rtol=0, atol=1e-6)


def test_stride_is_two_thirds_of_the_window():
    assert Inference(mode="slide", window=(480, 481)).stride == (320, 321)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_is_that_of_the_network_only(images, precision):
    seen = []
    network = nn.Conv2d(3, 2, 1)
    network.register_forward_hook(lambda module, arguments, result: seen.append(result.dtype))
    found = Inference((1.0, 0.5), precision=precision).probabilities(network, images)
    assert seen == [getattr(torch, precision)] * 2
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Inference((1.0, 0.5)).probabilities(network, images), rtol=0, atol=0.02)


def test_channels_last(images):
    spy = Spy()
    found = Inference(channels_last=True).probabilities(spy, images)
    assert spy.seen[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, softmax(images), rtol=0, atol=1e-6)


def test_no_gradient_is_kept(images):
    assert not Inference((0.5, 1)).probabilities(Spy(), images).requires_grad


def test_one_view_besides_the_sum_is_held(images):
    alive, largest = set(), 0

    class Counting(Spy):
        def forward(self, images):
            nonlocal largest
            result = super().forward(images)
            key = id(result)
            alive.add(key)
            weakref.finalize(result, alive.discard, key)
            largest = max(largest, len(alive))
            return result

    Inference((0.5, 0.75, 1.25, 1.5, 1.75), flip=True).probabilities(Counting(), images)
    assert largest == 1


def too_large_for_the_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory")


def too_large_for_the_machine():
    # more than any has; the error is that of PyTorch's allocator
    torch.empty(2**60, dtype=torch.uint8)


def too_large_for_numpy():
    np.empty(2**60, np.uint8)


@pytest.mark.parametrize("allocate", [too_large_for_the_gpu, too_large_for_the_machine, too_large_for_numpy])
def test_out_of_memory_says_what_to_do(images, allocate):
    class Full(nn.Module):
        def forward(self, images):
            allocate()

    with pytest.raises(
        OSError, match=r"no memory for pictures of 2 x 13 x 22 at scale 1.5: expected a smaller batch"
    ) as info:
        Inference((1.5,)).classes(Full(), images, 2)
    assert info.value.errno == errno.ENOMEM


def test_out_of_memory_names_the_pictures():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
        OSError(errno.ENOMEM, "no memory for it"),
    ):
        with pytest.raises(OSError, match=r"a\.png, b\.png: no memory") as info, naming_pictures(["a.png", "b.png"]):
            raise error
        assert info.value.errno == errno.ENOMEM
    with pytest.raises(RuntimeError, match=r"^other$"), naming_pictures(["a.png"]):
        raise RuntimeError("other")
    # a disk is no memory
    with pytest.raises(OSError, match=r"^full$"), naming_pictures(["a.png"]):
        raise OSError("full")


def test_evaluation_mode_gives_every_module_its_mode_back():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
    network[1].eval()
    seen = []

    def judge():
        with evaluation_mode(network):
            seen.extend(module.training for module in network.modules())
            raise OSError("of the block")

    with pytest.raises(OSError, match="of the block"):
        judge()
    assert seen == [False, False, False]
    assert [module.training for module in network.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales is empty: expected at least one"),
        ({"scales": (1, -0.5)}, "scales has -0.5: expected positive numbers"),
        ({"scales": (float("nan"),)}, "scales has nan: expected positive numbers"),
        ({"scales": ("1",)}, r"scales has '1' \(str\): expected numbers"),
        ({"mode": "windows"}, "mode is 'windows': expected one of 'whole', 'slide'"),
        ({"precision": "half"}, "precision is 'half': expected one of 'float32'"),
        ({"mode": "slide"}, "window is None with mode 'slide': expected .height, width. in pixels"),
        ({"mode": "slide", "window": (0, 5)}, r"window is \(0, 5\): expected two positive integers"),
        ({"mode": "slide", "window": 5}, "window is 5: expected two positive integers"),
        ({"mode": "slide", "window": (5, 5), "stride": (5, 6)}, r"stride is \(5, 6\): expected at most the window"),
        ({"window": (5, 5)}, r"window is \(5, 5\) with mode 'whole': expected mode 'slide'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Inference(**options)
