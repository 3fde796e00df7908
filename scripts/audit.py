"""Known advisories of the installed packages, by pip-audit; what could not be looked up is said, not passed over.

Exit code: 0, no advisory is known; 1, some are; 2, nothing could be audited.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any


def main() -> int:
    """Run pip-audit and print its findings."""
    if find_spec("pip_audit") is None:
        print('NOT AUDITED: pip-audit is not installed; with a network, run: pip install "tersor[audit]"')
        return 2
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"NOT AUDITED: no advisories could be read; is there a network? pip-audit says: {reason[:300]}")
        return 2
    lines, code = report(found)
    print(*lines, sep="\n")
    return code


def report(found: list[dict[str, Any]]) -> tuple[list[str], int]:
    r"""Lines for each advisory and each package that was not audited, and the exit code.

    >>> audited = {"name": "torch", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
    >>> print(*report([audited, {"name": "tersor", "skip_reason": "not on PyPI"}])[0], sep="\n")
    torch 2.0: PYSEC-1, fixed in 2.1
    unaudited: tersor (not on PyPI)
    1 advisory, 1 package audited, 1 unaudited
    """
    lines = []
    for package in found:
        for advisory in package.get("vulns", ()):
            fixed = ", ".join(advisory.get("fix_versions", ())) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    advisories, skipped = len(lines), [p for p in found if "skip_reason" in p]
    lines += [f"unaudited: {p['name']} ({p['skip_reason']})" for p in skipped]
    audited = len(found) - len(skipped)
    known = _count(advisories, "advisor", "y", "ies")
    lines.append(f"{known}, {_count(audited, 'package')} audited, {len(skipped)} unaudited")
    return lines, 1 if advisories else 0 if audited else 2


def _count(number: int, word: str, one: str = "", many: str = "s") -> str:
    return f"{number} {word}{one if number == 1 else many}"


if __name__ == "__main__":
    sys.exit(main())
