"""All of Nightscore's logic: data, training, registry, scoring, reports; imports no Airflow."""

import os

# The threads of torch wait for each other by spinning. That is fast while a process has the cores
# to itself, and very slow when another process shares them. A short spin and then sleep is close to
# the best in both cases (docs/decisions/0007-waiting-threads.md). torch reads the variables when it
# is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1500")
