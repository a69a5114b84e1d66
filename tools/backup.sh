#!/bin/sh
# Backs up an installation of Nightscore while it works, and restores it. docs/backup.md says how.
#
#   backup.sh databases FOLDER                  dump the four databases into FOLDER/databases/TIME/
#   backup.sh objects FOLDER                    copy what is new in the buckets into FOLDER/objects/
#   backup.sh check FOLDER [TIME]               look whether the newest dump and the objects fit
#   backup.sh restore-objects FOLDER
#   backup.sh restore-databases FOLDER [TIME]   into empty databases; the newest dump by default
#
# `databases` and `objects` may run in different containers, in this order. They need psql, pg_dump and
# pg_restore, not older than the servers, and rclone. Variables:
#
#   RESULTS_SERVER    libpq's parameters of the server with the database nightscore, as its
#                     administrator: "host=db user=postgres sslmode=verify-full". The password is in
#                     the file PGPASSFILE, never here
#   METADATA_SERVER   of the server with Airflow's and MLflow's databases, if it is another one
#   BUCKETS           "nightscore mlflow" by default
#   AWS_...           where S3 is, as for Nightscore; RCLONE_... as rclone documents them
#   MAY_BE_MISSING    a pattern (grep -E) of objects that `check` does not ask for
set -eu
umask 077
export LC_ALL=C PGAPPNAME=nightscore-backup PGCONNECT_TIMEOUT=10
DATABASES="airflow nightscore mlflow mlflow_auth"
BUCKETS=${BUCKETS:-nightscore mlflow}
TAB=$(printf '\t')

say() { echo "$*" >&2; }
fail() {
    say "backup.sh: $*"
    exit 1
}

# Databases --------------------------------------------------------------------------------------

connection() { # DATABASE: libpq's parameters
    server=${RESULTS_SERVER:?libpq\'s parameters of the server, such as host=db user=postgres}
    [ "$1" = nightscore ] || server=${METADATA_SERVER:-$server}
    echo "$server dbname=$1"
}

ask() { # DATABASE SQL
    psql --no-psqlrc --no-password --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 \
        --dbname="$(connection "$1")" --command="$2"
}

dump() { # DATABASE FOLDER
    pg_dump --no-password --format=custom --file="$2/$1.dump" --dbname="$(connection "$1")"
}

backup_databases() { # FOLDER
    now=$(date -u +%Y%m%dT%H%M%SZ)
    dumps=$1/databases/.$now.unfinished
    mkdir -p "$1/databases"
    mkdir "$dumps"
    trap 'rm -rf "$work" "$dumps"; kill $children 2> /dev/null || true' EXIT
    # Airflow's first. What it believes to be unfinished may be finished in the others, since a step
    # can be repeated. The other way round, it would wait for a run that the tables do not have.
    dump airflow "$dumps"
    # At once, so that no version is registered and promoted between the two.
    dump nightscore "$dumps" & children=$!
    results=$!
    dump mlflow "$dumps" & children="$children $!"
    tracking=$!
    dump mlflow_auth "$dumps" & children="$children $!"
    users=$!
    for child in $results $tracking $users; do wait "$child" || fail "A dump failed; none is kept."; done
    check_versions "$dumps"
    (cd "$dumps" && sha256sum -- *.dump > SHA256SUMS)
    mv "$dumps" "$1/databases/$now"
    say "The databases are in $1/databases/$now."
}

find_dumps() { # FOLDER [TIME]: the folder of the dumps
    newest=$(ls "$1/databases" 2> /dev/null | tail -n 1)
    dumps=$1/databases/${2:-$newest}
    [ -n "${2:-$newest}" ] && [ -e "$dumps/SHA256SUMS" ] || fail "There is no finished dump in $dumps."
}

check_dumps() { # the files are whole
    (cd "$dumps" && sha256sum -c SHA256SUMS > /dev/null 2>&1) || fail "$dumps is damaged."
    for database in $DATABASES; do
        pg_restore --list "$dumps/$database.dump" > "$work/list" || fail "$database.dump is damaged."
    done
}

rows() { # DUMP TABLES COLUMN...: rows of the tables that match a pattern, with tabs between columns
    dump=$1 tables=$2
    shift 2
    pg_restore --list "$dump" > "$work/all" || touch "$work/failed"
    grep -E " TABLE DATA [^ ]+ ($tables) " "$work/all" > "$work/list" || return 0
    { pg_restore --data-only --use-list="$work/list" --file=- "$dump" || touch "$work/failed"; } |
        awk -F '\t' -v wanted="$*" '
            copying && $0 == "\\." { copying = 0; next }
            copying {
                line = $place[1]
                for (i = 2; i <= n; i++) line = line "\t" $place[i]
                print line
            }
            !copying && /^COPY .* FROM stdin;$/ {
                header = $0
                sub(/^[^(]*\(/, "", header); sub(/\) FROM stdin;$/, "", header)
                columns = split(header, column, ", ")
                n = split(wanted, name, " ")
                for (i = 1; i <= n; i++)
                    for (j = 1; j <= columns; j++) if (column[j] == name[i]) place[i] = j
                copying = 1
            }'
}

check_reading() { # a part of a pipeline cannot end this script, so `rows` leaves a note
    [ ! -e "$work/failed" ] || fail "The dumps in $1 cannot be read."
}

check_versions() { # DUMPS: champion and previous are known to both MLflow and the results
    rows "$1/nightscore.dump" model_version model version | sort > "$work/registered"
    rows "$1/nightscore.dump" model_alias alias model version | in_use > "$work/mirrored"
    rows "$1/mlflow.dump" model_versions name version | sort > "$work/known"
    rows "$1/mlflow.dump" registered_model_aliases alias name version | in_use > "$work/aliased"
    # MLflow may have versions of others; those of Nightscore have this tag.
    rows "$1/mlflow.dump" model_version_tags key name version |
        sed -n "s/^nightscore\.sha256$TAB//p" | sort > "$work/ours"
    {
        comm -12 "$work/aliased" "$work/ours" | comm -23 - "$work/registered"
        comm -23 "$work/mirrored" "$work/known"
    } > "$work/torn"
    check_reading "$1"
    [ ! -s "$work/torn" ] || fail "A version was promoted while the databases were dumped. No dump is" \
        "kept; run it again. It is about: $(sort -u "$work/torn" | tr "$TAB\n" '/ ')"
}

in_use() { sed -n -E "s/^(champion|previous)$TAB//p" | sort -u; }

restore_databases() { # FOLDER [TIME]
    find_dumps "$@"
    check_dumps
    for database in $DATABASES; do
        relations=$(ask "$database" "SELECT count(*) FROM pg_class
            WHERE relnamespace::regnamespace::text !~ '^(pg_|information_schema)'") ||
            fail "The database $database cannot be used. Nothing is restored." \
                "\`nightscore prepare postgres\` makes the roles and databases."
        [ "$relations" = 0 ] || fail "The database $database is not empty. Nothing is restored." \
            "docs/backup.md says how to drop it."
    done
    for database in $DATABASES; do
        pg_restore --no-password --single-transaction --exit-on-error \
            --dbname="$(connection "$database")" "$dumps/$database.dump" ||
            fail "$database is not restored, and is empty as before. Drop the other databases," \
                "make them again, and repeat: they belong together."
        ask "$database" ANALYZE
    done
    say "The databases are those of $dumps."
}

# Objects ----------------------------------------------------------------------------------------

s3() { # ARGUMENT...: rclone, with the key from the environment and no configuration of its own
    endpoint=${AWS_ENDPOINT_URL_S3:-${AWS_ENDPOINT_URL:-}}
    provider=Other
    [ -n "$endpoint" ] || provider=AWS
    RCLONE_S3_ENV_AUTH=true \
        RCLONE_S3_ENDPOINT=${RCLONE_S3_ENDPOINT:-$endpoint} \
        RCLONE_S3_PROVIDER=${RCLONE_S3_PROVIDER:-$provider} \
        RCLONE_S3_REGION=${RCLONE_S3_REGION:-${AWS_REGION:-us-east-1}} \
        rclone --config= --stats=0 "$@"
}

backup_objects() { # FOLDER
    for bucket in $BUCKETS; do
        mkdir -p "$1/objects/$bucket"
        # `copy` deletes nothing, so that older dumps find their objects too. The server's time comes
        # with the listing; rclone's own would take a request for each object.
        s3 copy --use-server-modtime ":s3:$bucket" "$1/objects/$bucket"
    done
    say "The objects are in $1/objects."
}

restore_objects() { # FOLDER
    [ -d "$1/objects" ] || fail "There is no folder $1/objects."
    for bucket in $BUCKETS; do
        # What is there is left as it is: an object that differs is an error. In one part, so that
        # the ETag is that of the content, and no image is taken for a new one.
        s3 copy --checksum --immutable --s3-upload-cutoff=5G "$1/objects/$bucket" ":s3:$bucket"
    done
    say "The objects of $1/objects are in the buckets $BUCKETS."
}

# Both -------------------------------------------------------------------------------------------

check() { # FOLDER [TIME]: each object that a row names is in the backup
    find_dumps "$@"
    check_dumps
    check_versions "$dumps"
    nightscore=$dumps/nightscore.dump
    {
        rows "$nightscore" 'prediction_[0-9]+' heatmap_uri
        rows "$nightscore" scoring_run report_uri
        rows "$nightscore" model_version snapshot_uri
    } | grep '^s3://' | sort -u > "$work/named" || true
    (cd "$1/objects" && find . -type f) | sed 's#^\./#s3://#' | sort > "$work/there"
    rows "$nightscore" model_version program_sha256 openvino_sha256 model version |
        awk -F '\t' '{ print $1, "program of " $3 "/" $4 }
            $2 != "\\N" { print $2, "OpenVINO form of " $3 "/" $4 }' | sort > "$work/programs"
    check_reading "$dumps"
    find "$1/objects" \( -name model.pt2 -o -path '*/openvino/*.zip' \) -exec sha256sum {} + |
        cut -d ' ' -f 1 | sort -u > "$work/hashes"
    {
        comm -23 "$work/named" "$work/there"
        join -v 1 "$work/programs" "$work/hashes" | sed 's/^\([^ ]*\) \(.*\)/\2, SHA-256 \1/'
    } | grep -v -E -e "${MAY_BE_MISSING:-^$}" > "$work/missing" || true
    if [ -s "$work/missing" ]; then
        head -n 20 "$work/missing" >&2
        fail "The objects lack $(wc -l < "$work/missing") that rows of $dumps name, with these first."
    fi
    say "$dumps is whole. The objects that its rows name are there:" \
        "$(wc -l < "$work/programs") files of programs, $(wc -l < "$work/named") others."
}

[ $# -ge 2 ] || fail "Usage: backup.sh databases|objects|check|restore-objects|restore-databases FOLDER"
command=$1 children=
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
case $command in
    databases) backup_databases "$1" ;;
    objects) backup_objects "$1" ;;
    check) check "$@" ;;
    restore-objects) restore_objects "$1" ;;
    restore-databases) restore_databases "$@" ;;
    *) fail "There is no command $command." ;;
esac
