"""QS-24: a trained model gets observers, sees training batches and becomes integers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from workers.qat.convert import IntegerConv2d, IntegerLinear, packed_bytes
from workers.qat.errors import QuantizationError
from workers.qat.layers import QuantActivation, QuantConv2d, QuantLinear
from workers.qat.observers import range_observers
from workers.qat.ptq import attach, calibrate, end_calibration, file_name, quantize_after_training, start_calibration


def trained() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 1, 4, 4, generator=generator) for _ in range(count)]


def test_qs24_an_attached_model_computes_as_before_until_it_is_calibrated() -> None:
    model, x = trained(), batches(1)[0]
    attached = attach(model, bits=4)
    assert torch.equal(attached(x), model(x))
    assert sorted(range_observers(attached)) == ["0.1.observer", "3.1.observer"]
    assert not range_observers(model) and attached[3][0].weight is not model[3].weight  # type: ignore[index]


def test_qs24_the_result_is_integers_near_the_trained_model() -> None:
    model, x = trained(), batches(1)[0]
    attached = attach(model)
    converted = quantize_after_training(attached, [x])
    assert isinstance(converted[0][0], IntegerConv2d) and isinstance(converted[3][0], IntegerLinear)  # type: ignore[index]
    with torch.no_grad():
        error = (converted(x) - model(x)).abs().max() / model(x).abs().max()
        assert 0 < float(error) < 0.01
        assert torch.equal(converted(x), attached.eval()(x))


def test_qs17_what_exceeds_the_average_of_the_calibration_batches_is_clipped() -> None:
    model, x = trained(), batches(1)[0]
    attached = attach(model)
    converted = quantize_after_training(attached, batches())
    high = float(range_observers(attached)["3.1.observer"].high)
    with torch.no_grad():
        assert float(model(x).max()) > high + 0.05
        assert float(converted(x).max()) == pytest.approx(high, rel=1e-6)


def test_qs24_bits_change_the_stored_codes_and_the_error() -> None:
    model, x = trained(), batches(1)[0]
    sizes, errors = [], []
    for bits in (8, 6, 4, 2):
        converted = quantize_after_training(attach(model), batches(), bits=bits)
        sizes.append(packed_bytes(converted))
        errors.append(float((converted(x) - model(x)).detach().abs().mean()))
    assert sizes == sorted(set(sizes), reverse=True) and errors == sorted(set(errors))


def test_qs24_calibration_takes_64_batches_with_fake_quantization_off() -> None:
    seen: list[tuple[bool, bool]] = []

    class Spy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.append((quantized.fake_quant, model.training))
            return super().forward(input)

    quantized = QuantLinear(2, 2, fake_quant=True)
    model = nn.Sequential(Spy(2, 2), quantized, QuantActivation(fake_quant=True)).train()

    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.randn(4, 2)

    assert calibrate(model, endless()) == 64
    assert seen == [(False, False)] * 64 and model.training
    assert int(range_observers(model)["2.observer"].updates) == 64
    assert quantized.fake_quant and not range_observers(model)["2.observer"].observing


def test_qs40_calibration_starts_anew_and_averages_what_it_sees() -> None:
    model = nn.Sequential(QuantActivation())
    (observer,) = range_observers(model).values()
    observer.take(torch.tensor([100.0, 100.0]))
    calibrate(model, [torch.tensor([[-1.0, 2.0]]), torch.tensor([[-3.0, 4.0]])])
    assert (float(observer.low), float(observer.high), int(observer.updates)) == (-2.0, 3.0, 2)
    start_calibration(model)
    assert observer.calibrating and observer.observing and not observer.ready
    end_calibration(model)
    assert not observer.calibrating and not observer.observing


def test_activations_can_stand_before_a_layer_and_shared_layers_stay_shared() -> None:
    layer = nn.Linear(4, 4)
    attached = attach(nn.Sequential(layer, nn.ReLU(), layer), where="input")
    assert isinstance(attached[0][0], QuantActivation) and isinstance(attached[0][1], QuantLinear)  # type: ignore[index]
    assert attached[0] is attached[2]  # type: ignore[index]


def test_a_convolution_keeps_its_shape() -> None:
    conv = nn.Conv2d(4, 6, (3, 1), stride=2, padding=(1, 0), dilation=1, groups=2, bias=False)
    x = torch.randn(2, 4, 8, 8)
    attached = attach(conv)
    assert isinstance(attached[0], QuantConv2d) and torch.equal(attached(x), conv(x))  # type: ignore[index]


def test_qs24_no_observers_and_no_data_are_refused_in_one_sentence() -> None:
    with pytest.raises(QuantizationError, match="the model has no observers to calibrate"):
        quantize_after_training(trained(), batches())
    with pytest.raises(QuantizationError, match="calibration got no batch"):
        quantize_after_training(attach(trained()), [])


def test_qs24_calibration_without_data_leaves_the_ranges_there_are() -> None:
    model = nn.Sequential(QuantActivation())
    calibrate(model, [torch.tensor([[-1.0, 2.0]])])
    with pytest.raises(QuantizationError, match="calibration got no batch"):
        calibrate(model, [])
    (observer,) = range_observers(model).values()
    assert observer.ready and not observer.observing and float(observer.high) == 2.0


def test_qs24_the_export_says_its_bits() -> None:
    assert file_name(4) == "quantarion_snn_4bit_ptq.safetensors"
