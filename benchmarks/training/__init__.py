"""Long measurements of training: each row of the table is a frozen dataclass of what it depends on, and callable."""
