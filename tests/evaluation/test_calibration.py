import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fusion_jax.evaluation.calibration import calibrate
from fusion_jax.evaluation.readout import TEMPERATURES


def cross_entropy(logits, labels, temperature):
    scaled = logits / temperature
    chosen = scaled[np.arange(len(labels)), labels]
    return np.mean(np.log(np.exp(scaled).sum(-1)) - chosen)


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 2.7])
def test_calibrated_loss_is_close_to_the_fitted_one(overconfidence, generator):
    logits = 2 * generator.normal(size=(400, 5))
    powers = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = np.array([generator.choice(5, p=p) for p in powers])
    sharp = overconfidence * logits
    curve = [cross_entropy(sharp, labels, t) for t in TEMPERATURES]
    loss, temperature = calibrate(np.array(curve))
    fitted = minimize_scalar(
        lambda x: cross_entropy(sharp, labels, np.exp(x)),
        bounds=(-1.5, 1.5),
        method="bounded",
    )
    assert loss == pytest.approx(fitted.fun, rel=2e-3)
    assert temperature == pytest.approx(np.exp(fitted.x), rel=0.1)
    assert loss <= min(curve)


def test_a_parabola_is_found_exactly():
    grid = np.log(TEMPERATURES)
    curves = 0.3 + 0.7 * (grid - np.array([[0.2], [-0.6]])) ** 2
    loss, temperature = calibrate(curves)
    np.testing.assert_allclose(loss, 0.3, rtol=1e-12)
    np.testing.assert_allclose(np.log(temperature), [0.2, -0.6], rtol=1e-9)


def test_ends_of_the_grid_and_flat_curves_are_taken_as_they_are():
    rising = np.linspace(1, 2, len(TEMPERATURES))
    assert calibrate(rising)[0] == 1.0
    assert calibrate(rising)[1] == pytest.approx(TEMPERATURES[0])
    assert calibrate(rising[::-1])[0] == 1.0
    assert calibrate(np.ones(len(TEMPERATURES)))[0] == 1.0
    assert np.isnan(calibrate(np.full(len(TEMPERATURES), np.nan))[0])


def test_a_table_of_another_width_is_refused():
    with pytest.raises(ValueError, match="3 temperatures; expected 9"):
        calibrate(np.zeros(3))
