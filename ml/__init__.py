"""All of Nightscore's logic: data in, training, registry, scoring, reports; imports no Airflow."""

import os

# torch's threads wait for each other by spinning, which is quick while a process has the cores to
# itself and ruinous beside another; a short spin and then sleep is nearly the best in both cases
# (docs/decisions/0007-waiting-threads.md). Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1500")
