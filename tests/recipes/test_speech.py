"""Spectrograms of recordings: tones where they belong, loudness in decibels, the archive's own parts."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from rheostat_recipes.data import load
from rheostat_recipes.speech import RATE, log_mel, mel_bands, recordings


def tone(hz: float, amplitude: float = 0.5, seconds: float = 1.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def record(path: Path, sound: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())


def test_a_tone_is_in_its_band() -> None:
    for hz in (200, 440, 1000, 2500, 6000):
        spectrogram = log_mel(tone(hz))
        assert spectrogram.shape == (98, 40)
        assert spectrogram.dtype == np.uint8
        loudest = spectrogram.mean(0).argmax()
        # 40 bands, evenly spaced in mel from 20 Hz to 8 kHz
        mel, low, high = (2595 * np.log10(1 + f / 700) for f in (hz, 20, RATE / 2))
        assert abs((mel - low) / (high - low) * 41 - 1 - loudest) <= 1
        assert spectrogram[:, loudest].std() <= 1


def test_ten_times_quieter_is_twenty_decibels_less() -> None:
    loud, quiet = (log_mel(tone(1000, amplitude))[:, 12:16].max().astype(int) for amplitude in (0.5, 0.05))
    assert loud - quiet == pytest.approx(20 * 255 / 80, abs=1)


def test_a_short_clip_ends_in_silence() -> None:
    spectrogram = log_mel(tone(1000, seconds=0.4))
    assert spectrogram[:37].max(1).min() > 200
    assert spectrogram[41:].max() == 0


def test_every_band_hears_something() -> None:
    bands = mel_bands()
    assert (bands >= 0).all()
    assert (bands.sum(0) > 0).all()
    # neighbours cross: between the first and the last peak the triangles add up to one
    inside = bands.sum(1)[3:240]
    np.testing.assert_allclose(inside[20:], 1, atol=0.05)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "speech_commands_v0.02"
    for number in range(6):
        record(folder / "yes" / f"{number}.wav", tone(500, seconds=0.5))
        record(folder / "go" / f"{number}.wav", tone(700))
        record(folder / "bed" / f"{number}.wav", tone(900))
        record(folder / "tree" / f"{number}.wav", tone(1100))
    record(folder / "_background_noise_" / "hum.wav", tone(50, seconds=20.5))
    (folder / "testing_list.txt").write_text("yes/5.wav\ngo/5.wav\nbed/5.wav\n")
    (folder / "validation_list.txt").write_text("yes/4.wav\n")
    return tmp_path


def test_parts_and_classes(archive: Path) -> None:
    images = load("speech_wav", archive)
    # 5 - 1 "yes", 5 "go", one in six of the other words: the sixth "bed" is a test clip, the sixth "tree" is not
    assert sorted(images.train_labels.tolist()) == [0] * 4 + [9] * 5 + [10] + [11] * 18
    assert sorted(images.test_labels.tolist()) == [0, 9, 10, 11, 11]
    assert images.train_images.shape == (28, 1, 98, 40)
    pixels = images.train_images / 255
    assert (images.mean[0], images.std[0]) == pytest.approx((pixels.mean(), pixels.std()), abs=1e-4)
    (yes,) = images.test_images[images.test_labels == 0]
    np.testing.assert_array_equal(yes[0], log_mel(np.trunc(tone(500, seconds=0.5) * 32767) / 32768))


def test_mistakes(archive: Path) -> None:
    folder = archive / "speech_commands_v0.02"
    record(folder / "yes" / "9.wav", tone(500), rate=8000)
    with pytest.raises(
        ValueError, match=r"9\.wav: got 8000 Hz, 16 bit, 1 channels; want 16 kHz, 16 bit, mono"
    ):
        recordings(folder)
    (folder / "yes" / "9.wav").write_bytes(b"not sound")
    with pytest.raises(ValueError, match=r"9\.wav: not a WAV file"):
        recordings(folder)
    (folder / "testing_list.txt").unlink()
    with pytest.raises(ValueError, match=r"want the extracted speech_commands_v0\.02\.tar\.gz"):
        recordings(folder)
