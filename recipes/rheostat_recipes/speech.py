"""Speech Commands as it is published, recordings of one word each, as log-mel spectrograms."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = 10, 11

RATE = 16_000  # samples a second
FRAME, STEP, NUM_BANDS = 480, 160, 40  # 30 ms every 10 ms: 98 frames in a second
EVERY = 6  # of the 25 other words, so that "unknown" is a quarter of all clips and not two thirds


def recordings(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the training and the test part of the extracted archive: spectrograms uint8 [N, 1, 98, 40] and labels.

    Twelve classes (Warden 2018): ten words, every sixth clip of the 25 others as "unknown", and the seconds of the
    background noise as "silence", every tenth of them for the test. The parts are those of the archive's own lists;
    the validation part is left out. The twelve-class test set that is published beside the archive is another choice
    of unknown and silent clips, so accuracies differ a little. Takes a minute or two.
    Raises ValueError when the folder is not that of speech_commands_v0.02.
    """
    lists = {part: folder / f"{part}_list.txt" for part in ("testing", "validation")}
    if not all(path.is_file() for path in lists.values()):
        raise ValueError(
            f"{folder}: no testing_list.txt and validation_list.txt; want the extracted speech_commands_v0.02.tar.gz"
        )
    named = {part: set(path.read_text(encoding="utf-8").split()) for part, path in lists.items()}
    clips: dict[str, list[tuple[np.ndarray, int]]] = {"training": [], "testing": []}
    num_other = 0
    for path in sorted(folder.glob("*/*.wav")):
        word = path.parent.name
        if word == "_background_noise_":
            sound = _samples(path)
            for second in range(len(sound) // RATE):
                part = "testing" if second % 10 == 9 else "training"
                clips[part].append((log_mel(sound[second * RATE : (second + 1) * RATE]), SILENCE))
            continue
        if word not in WORDS:
            num_other += 1
            if num_other % EVERY:
                continue
        name = f"{word}/{path.name}"
        if name not in named["validation"]:
            label = WORDS.index(word) if word in WORDS else UNKNOWN
            clips["testing" if name in named["testing"] else "training"].append(
                (log_mel(_samples(path)), label)
            )
    if not all(clips.values()):
        raise ValueError(f"{folder}: no recordings of both parts; want <word>/*.wav of speech_commands_v0.02")
    training, testing = (
        (np.stack([x for x, _ in part])[:, None], np.array([label for _, label in part], np.int64))
        for part in clips.values()
    )
    return *training, *testing


def log_mel(sound: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram uint8 [98, 40] of up to a second of sound, samples from -1 to 1 at 16 kHz.

    Frames of 30 ms every 10 ms under a Hann window, 40 bands from 20 Hz to 8 kHz; 0 to 255 are 80 dB, evenly.

    >>> log_mel(np.zeros(16_000)).max()
    np.uint8(0)
    """
    sound = np.pad(sound[:RATE], (0, max(0, RATE - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::STEP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), 512)) ** 2
    level_db = 10 * np.log10(power @ mel_bands() + 1e-10)
    return np.clip(np.rint((level_db + 40) * (255 / 80)), 0, 255).astype(np.uint8)


def mel_bands() -> np.ndarray:
    """Triangles that add a spectrum of 257 bins up to bands, float [257, 40]; mel after O'Shaughnessy (1987).

    >>> mel_bands().shape
    (257, 40)
    """
    lowest_mel, highest_mel = 2595 * np.log10(1 + np.array([20, RATE / 2]) / 700)
    edges_mel = np.linspace(lowest_mel, highest_mel, NUM_BANDS + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    hz = np.linspace(0, RATE / 2, 257)[:, None]
    rising = (hz - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - hz) / (edges_hz[2:] - edges_hz[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _samples(path: Path) -> np.ndarray:
    """Samples of a recording, float from -1 to 1."""
    try:
        with wave.open(str(path)) as file:
            got = file.getframerate(), file.getsampwidth(), file.getnchannels()
            sound = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path}: not a WAV file ({error})") from None
    if got != (RATE, 2, 1):
        raise ValueError(
            f"{path}: got {got[0]} Hz, {8 * got[1]} bit, {got[2]} channels; want 16 kHz, 16 bit, mono"
        )
    return np.frombuffer(sound, "<i2") / 32768
