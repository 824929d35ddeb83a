"""The running half: numpy and the native library, never torch."""
