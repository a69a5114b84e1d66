"""All of Nightscore's logic: data in, training, registry, scoring, reports; imports no Airflow."""

import os

# torch's threads wait for each other by spinning, which is quick while a process has the cores to
# itself and ruinous beside another: two trainings at once on 2 cores ran at 162 images/s each, and
# at 535 with threads that sleep; one alone at 1,130 and 1,100. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
