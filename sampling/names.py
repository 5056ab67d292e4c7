"""Names of files in a sample folder."""

SETTINGS_NAME, PROGRESS_NAME, NPZ_NAME, CODES_NAME = "samples.json", ".progress", "samples.npz", "codes.npz"
NUMBER = 6 * "[0-9]"


def image_name(index: int) -> str:
    return f"{index:06d}.png"
