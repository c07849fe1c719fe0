"""What must not come to a terminal as it is, when a peer or a model said it."""

_UNSEEN = (0x200B, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""What has no width, or turns the order of letters round."""
ESCAPES: dict[int, str] = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    **{code: f"\\u{code:04x}" for code in _UNSEEN},
}
"""For `str.translate`: what is seen instead of characters that steer a terminal or hide in it."""
