"""One round trip for the rows of received instances"""

from alembic import op

revision = "0004"
down_revision = "0003"

# A group of received instances is written down by one statement in one transaction. Rows of the
# group are taken study by study in the order of their UIDs: two receivers that lock the same
# studies then never wait for each other in a ring.
_FUNCTION = """
CREATE FUNCTION register_instances(received jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    one record;
    known study%ROWTYPE;
    before study%ROWTYPE;
    latest record;
    late boolean;
    written integer := 0;
    gone jsonb := '[]';
BEGIN
    FOR one IN
        SELECT item.*, element.place
        FROM jsonb_array_elements(received) WITH ORDINALITY AS element (body, place),
        LATERAL jsonb_to_record(element.body) AS item (
            study_instance_uid text, series_instance_uid text, sop_instance_uid text,
            sop_class_uid text, transfer_syntax_uid text, path text, sha256 text, size bigint,
            calling_ae_title text, address text, patient_key text, is_report boolean,
            patient_id_key text, patient_issuer_key text, accession_key text,
            accession_issuer_key text, study_date text, quiet interval, ready interval
        )
        ORDER BY item.study_instance_uid COLLATE "C", element.place
    LOOP
        -- The study's row lock: what a worker reads under it either holds this instance, or this
        -- instance begins a new revision. NO KEY: who has a job's row and appends an event for the
        -- study need not wait for us, who may want the job's row next.
        SELECT * INTO known FROM study
        WHERE study_instance_uid = one.study_instance_uid FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            INSERT INTO study (study_instance_uid, state, revision, patient_key)
            VALUES (one.study_instance_uid, 'new', 1, one.patient_key)
            ON CONFLICT DO NOTHING;
            SELECT * INTO known FROM study
            WHERE study_instance_uid = one.study_instance_uid FOR NO KEY UPDATE;
        END IF;

        before := known;

        -- Whose study it is: the first instance that says something is believed; two patients in
        -- one study are a fault that nobody here can mend. A report may be of another patient.
        IF NOT one.is_report THEN
            known.patient_id_key := CASE
                WHEN nullif(known.patient_id_key, '') <> nullif(one.patient_id_key, '')
                THEN 'mixed'
                ELSE coalesce(nullif(known.patient_id_key, ''), one.patient_id_key)
            END;
            known.patient_issuer_key := CASE
                WHEN nullif(known.patient_issuer_key, '') <> nullif(one.patient_issuer_key, '')
                THEN 'mixed'
                ELSE coalesce(nullif(known.patient_issuer_key, ''), one.patient_issuer_key)
            END;
            known.accession_key := coalesce(nullif(known.accession_key, ''), one.accession_key);
            known.accession_issuer_key :=
                coalesce(nullif(known.accession_issuer_key, ''), one.accession_issuer_key);
            known.study_date := coalesce(nullif(known.study_date, ''), one.study_date);
        END IF;

        SELECT revision, sha256,
            bool_or(path = one.path AND pixels_deleted_at IS NOT NULL) OVER () AS deleted
        INTO latest FROM instance
        WHERE study_instance_uid = one.study_instance_uid
            AND sop_instance_uid = one.sop_instance_uid
        ORDER BY revision DESC LIMIT 1;
        -- Its file may have gone with the old one: who may go on must look for it (retention).
        IF latest.deleted OR known.state = 'deleting' THEN
            gone := gone || to_jsonb(one.place - 1);
            CONTINUE;
        END IF;
        IF latest.sha256 = one.sha256 THEN
            UPDATE study SET
                patient_id_key = known.patient_id_key,
                patient_issuer_key = known.patient_issuer_key,
                accession_key = known.accession_key,
                accession_issuer_key = known.accession_issuer_key,
                study_date = known.study_date
            WHERE study_instance_uid = one.study_instance_uid;
            CONTINUE;
        END IF;

        INSERT INTO instance (
            study_instance_uid, sop_instance_uid, revision, series_instance_uid, sop_class_uid,
            transfer_syntax_uid, path, sha256, size, calling_ae_title, address
        ) VALUES (
            one.study_instance_uid, one.sop_instance_uid, coalesce(latest.revision, 0) + 1,
            one.series_instance_uid, one.sop_class_uid, one.transfer_syntax_uid, one.path,
            one.sha256, one.size, one.calling_ae_title, one.address
        );
        written := written + 1;
        IF latest.revision IS NOT NULL THEN
            INSERT INTO event (study_instance_uid, subject, "from", "to", reason) VALUES (
                one.study_instance_uid, 'instance ' || one.sop_instance_uid,
                'revision ' || latest.revision, 'revision ' || (latest.revision + 1),
                'WARNING: other bytes came under a SOP Instance UID that was already here'
            );
        END IF;

        late := EXISTS (
            SELECT FROM job WHERE study_instance_uid = one.study_instance_uid
                AND revision = before.revision AND state <> 'queued'
        );
        known.state := 'receiving';
        known.has_pixels := true;
        known.revision := before.revision + late::integer;
        known.received_at := now();
        known.ready_at := now() + one.ready;
        known.settle_at := now() + one.quiet;
        IF known IS DISTINCT FROM before THEN  -- not for the next ones of a study in one group
            UPDATE study SET
                patient_id_key = known.patient_id_key,
                patient_issuer_key = known.patient_issuer_key,
                accession_key = known.accession_key,
                accession_issuer_key = known.accession_issuer_key,
                study_date = known.study_date,
                state = known.state,
                has_pixels = known.has_pixels,
                revision = known.revision,
                received_at = known.received_at,
                ready_at = known.ready_at,
                settle_at = known.settle_at
            WHERE study_instance_uid = one.study_instance_uid;
        END IF;
        -- A new image may be what a waiting job lacks: let it look then.
        UPDATE job SET due_at = now() + one.ready, nudged_at = NULL
        WHERE study_instance_uid = one.study_instance_uid AND state = 'queued' AND attempts = 0
            AND due_at > now() + one.ready;
        IF late OR before.state <> 'receiving' THEN
            INSERT INTO event (study_instance_uid, subject, "from", "to", reason) VALUES (
                one.study_instance_uid, 'study', nullif(before.state, 'new'), 'receiving',
                CASE WHEN late THEN 'late instance: revision ' || known.revision END
            );
        END IF;
    END LOOP;
    RETURN jsonb_build_object('written', written, 'gone', gone);
END
$$
"""


def upgrade() -> None:
    """Make the function. What it does is written down in plain Python beside its tests."""
    op.execute(_FUNCTION)


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP FUNCTION register_instances(jsonb)")
