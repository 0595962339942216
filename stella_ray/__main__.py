"""`python -m stella_ray doctor`."""

from __future__ import annotations

import sys

from stella_ray import doctor, settings
from stella_ray.errors import SettingsError


def main() -> None:
    """Run the one command there is; the jobs are files of their own."""
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(
            "python -m stella_ray doctor [--help]: what this machine lacks, if it does\n"
        )
        return
    if words[:1] != ["doctor"]:
        found = repr(words[0]) if words else "nothing"
        raise SettingsError(
            f"found {found}, expected a command: python -m stella_ray doctor (the jobs are started"
            " as python jobs/NAME.py)"
        )
    sys.argv = ["python -m stella_ray doctor", *words[1:]]
    doctor.main()


if __name__ == "__main__":
    settings.run_job(main)
