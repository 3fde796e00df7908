"""Write the JSON schema of `report.json` into the documentation: python scripts/write_schema.py"""

from pathlib import Path

from tersor.measure.schema import json_schema

TARGET = Path(__file__).parents[1] / "docs/en/reference/report.schema.json"

if __name__ == "__main__":
    TARGET.write_text(json_schema(), encoding="utf-8")
