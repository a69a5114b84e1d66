#!/bin/sh
# Draws the secrets that compose.yaml mounts, into docker/secrets/, and copies ../nightscore.yaml into
# docker/config/. What exists is kept, so it is safe to repeat.
#
# secrets/drawn/ has one file for each password or key. The files beside it are made from those each
# time: delete a file of drawn/, run this again, and restart, to change a secret (README.md says what
# else some of them need). Containers run as other users than you, so they could not read files that
# only you can; instead, nobody else can pass through the folder.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets/drawn config
chmod 700 secrets

draw() { # NAME [COMMAND]: the value of a secret, which is drawn if it is new
    if [ ! -s "secrets/drawn/$1" ]; then
        "${2:-password}" > "secrets/drawn/.new"
        mv "secrets/drawn/.new" "secrets/drawn/$1"
    fi
    cat "secrets/drawn/$1"
}
password() { od -An -v -N 24 -t x1 /dev/urandom | tr -d ' \n'; }
signing_key() { password; password; } # as SHA-512 asks for: 64 bytes or more
fernet_key() { head -c 32 /dev/urandom | base64 | tr '+/' '-_'; }
secret() { # NAME: writes standard input to a file of secrets/
    cat > "secrets/.new"
    chmod 444 "secrets/.new"
    mv "secrets/.new" "secrets/$1"
}

owner=$(draw owner) writer=$(draw writer) analyst=$(draw analyst) maintainer=$(draw maintainer)
airflow_database=$(draw airflow_database) mlflow_database=$(draw mlflow_database)
mlflow=$(draw mlflow) broker=$(draw broker)

# Postgres: the administrators of both servers, and the roles on each.
draw results_administrator | secret results_administrator
draw metadata_administrator | secret metadata_administrator
secret results_roles.json <<END
{"nightscore_owner": "$owner", "nightscore_writer": "$writer", "nightscore_analyst": "$analyst",
 "nightscore_maintainer": "$maintainer"}
END
secret metadata_roles.json <<END
{"airflow": "$airflow_database", "mlflow": "$mlflow_database"}
END

# S3: who may do what in which bucket. docs/security.md explains the worker's rights.
identity() { # NAME ACTION...: an entry of s3.json
    name=$1
    shift
    printf '{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": [' \
        "$name" "$(draw "s3_${name}_key")" "$(draw "s3_${name}_secret")"
    printf '"%s"' "$1"
    shift
    for action; do printf ', "%s"' "$action"; done
    printf ']}'
}
{
    printf '{"identities": [\n'
    identity administrator Admin Read Write List Tagging
    printf ',\n'
    identity worker Read:nightscore List:nightscore 'Write:nightscore/snapshots/*' \
        'Write:nightscore/heatmaps/*' 'Write:nightscore/reports/*' \
        Read:airflow-logs List:airflow-logs Write:airflow-logs
    printf ',\n'
    identity pages 'Read:nightscore/reports/*' List:nightscore Read:airflow-logs List:airflow-logs
    printf ',\n'
    identity mlflow Read:mlflow Write:mlflow List:mlflow
    printf '\n]}\n'
} | secret s3.json
s3_environment() { # NAME
    printf 'AWS_ENDPOINT_URL=http://s3:8333\nAWS_REGION=us-east-1\nAWS_DEFAULT_REGION=us-east-1\n'
    printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' \
        "$(draw "s3_$1_key")" "$(draw "s3_$1_secret")"
}
s3_environment administrator | secret s3_administrator.env

# The broker of Celery, which also keeps what becomes of each task for a day.
secret broker.conf <<END
requirepass $broker
appendonly yes
END
printf 'redis://:%s@broker:6379/0' "$broker" | secret broker_url

# MLflow: its two databases, its artifacts, its first user.
{
    s3_environment mlflow
    printf 'MLFLOW_S3_ENDPOINT_URL=http://s3:8333\n'
    printf 'MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://mlflow:%s@metadata/mlflow\n' "$mlflow_database"
    printf 'MLFLOW_FLASK_SERVER_SECRET_KEY=%s\n' "$(draw mlflow_session)"
} | secret mlflow.env
secret mlflow_auth.ini <<END
[mlflow]
default_permission = READ
database_uri = postgresql+psycopg2://mlflow:$mlflow_database@metadata/mlflow_auth
admin_username = admin
admin_password = $mlflow
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
END

# Airflow: its database, its keys, its user.
printf 'postgresql+psycopg2://airflow:%s@metadata/airflow' "$airflow_database" | secret airflow_database_url
draw airflow_fernet_key fernet_key | secret airflow_fernet_key
draw airflow_jwt_secret signing_key | secret airflow_jwt_secret
draw airflow_api_secret_key signing_key | secret airflow_api_secret_key
printf '{"admin": "%s"}\n' "$(draw airflow)" | secret airflow_passwords.json

# Airflow's connections: what tasks use, and what the pages of the API server use.
connection() { # ID TYPE HOST PORT LOGIN PASSWORD SCHEMA EXTRA
    printf '"%s": {"conn_type": "%s", "host": "%s", "port": %s, "login": "%s", "password": "%s", "schema": "%s", "extra": %s}' "$@"
}
s3_connection() { # NAME
    connection nightscore_s3 aws "" null "$(draw "s3_$1_key")" "$(draw "s3_$1_secret")" "" \
        '{"endpoint_url": "http://s3:8333", "region_name": "us-east-1"}'
}
{
    printf '{\n'
    connection nightscore_postgres postgres postgres 5432 nightscore_writer "$writer" nightscore '{}'
    printf ',\n'
    connection nightscore_maintainer postgres postgres 5432 nightscore_maintainer "$maintainer" nightscore '{}'
    printf ',\n'
    connection nightscore_mlflow http mlflow 5000 admin "$mlflow" http '{}'
    printf ',\n'
    s3_connection worker
    printf '\n}\n'
} | secret worker_connections.json
{
    printf '{\n'
    connection nightscore_analyst postgres postgres 5432 nightscore_analyst "$analyst" nightscore '{}'
    printf ',\n'
    s3_connection pages
    printf '\n}\n'
} | secret pages_connections.json

# The jobs that run `nightscore migrate` and `nightscore models convert`, and the metrics.
{
    printf 'NIGHTSCORE_DATABASE_URL=postgresql+psycopg2://nightscore_writer:%s@postgres/nightscore\n' "$writer"
    printf 'MLFLOW_TRACKING_URI=http://mlflow:5000\n'
    printf 'MLFLOW_TRACKING_USERNAME=admin\nMLFLOW_TRACKING_PASSWORD=%s\n' "$mlflow"
} | secret jobs.env
# Whoever runs `docker compose run --rm cli nightscore ...`: all of the above but the owner's login.
{
    cat secrets/jobs.env secrets/s3_administrator.env
    printf 'NIGHTSCORE_ANALYST_URL=postgresql+psycopg2://nightscore_analyst:%s@postgres/nightscore\n' "$analyst"
    printf 'NIGHTSCORE_AIRFLOW_URL=http://airflow-api-server:8080\n'
    printf 'NIGHTSCORE_AIRFLOW_USERNAME=admin\nNIGHTSCORE_AIRFLOW_PASSWORD=%s\n' "$(draw airflow)"
} | secret operator.env
printf 'NIGHTSCORE_OWNER_URL=postgresql+psycopg2://nightscore_owner:%s@postgres/nightscore\n' "$owner" \
    | secret owner.env
printf 'NIGHTSCORE_ANALYST_URL=postgresql+psycopg2://nightscore_analyst:%s@postgres/nightscore\n' "$analyst" \
    | secret analyst.env
printf 'NIGHTSCORE_MAINTAINER_URL=postgresql+psycopg2://nightscore_maintainer:%s@postgres/nightscore\n' "$maintainer" \
    | secret maintainer.env

if [ ! -e config/nightscore.yaml ]; then
    {
        cat ../nightscore.yaml
        printf '\nresources:                      # queue default: the workers on CPUs; gpu: with torch and MLflow\n'
        printf '  score: {queue: default}\n  retrain: {queue: gpu}\n'
    } > config/nightscore.yaml
fi
chmod 755 config
chmod 644 config/nightscore.yaml
