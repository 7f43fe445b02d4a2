"""How numbers are said to people: the same on the page, in tables and in the progress line."""


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage.

    >>> percent(0.9806)
    '98.1%'
    """
    return f"{100 * share:.1f}%"


def number(value: float) -> str:
    """A number in four digits; whole ones in full.

    >>> number(123456), number(0.0123456), number(31.25)
    ('123,456', '0.01235', '31.25')
    """
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> duration(12.34), duration(75), duration(3725)
    ('12.3 s', '1 min 15 s', '1 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def label(name: str) -> str:
    """A metric's name as words.

    >>> label("adversarial_accuracy"), label("images_per_second"), label("pgd-50")
    ('adversarial', 'images per second', 'pgd-50')
    """
    return name.removesuffix("_accuracy").replace("_", " ")
