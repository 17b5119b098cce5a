"""What the export refuses."""


class ExportError(ValueError):
    """The policy cannot be exported as asked; the sentence says what to do."""
