-- A registry's metadata database of the normalised kind, as GitLab's container registry has one: each repository
-- has rows of its own for its manifests, layers, links and tags; triggers note what the garbage collector must
-- review. Written for comparison from what is publicly known of such schemas, not copied from one.
--
-- What is in doubt is decided in this schema's favour, so its figures are a lower bound: no surrogate key where
-- nothing refers to the row, no copy of the configuration's bytes, 32-byte digests, fixed review delays.
-- All names are resolved by search_path: the caller makes a namespace and drops it.

CREATE TABLE namespaces (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    name text NOT NULL UNIQUE
);

CREATE TABLE repositories (
    namespace_id bigint NOT NULL REFERENCES namespaces ON DELETE CASCADE,
    id bigint GENERATED ALWAYS AS IDENTITY,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz,
    path text NOT NULL UNIQUE,
    PRIMARY KEY (namespace_id, id)
);

CREATE TABLE media_types (
    id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    media_type text NOT NULL UNIQUE
);

INSERT INTO media_types (media_type) VALUES
    ('application/octet-stream'),
    ('application/vnd.oci.image.index.v1+json'),
    ('application/vnd.oci.image.manifest.v1+json'),
    ('application/vnd.oci.image.config.v1+json'),
    ('application/vnd.oci.image.layer.v1.tar+gzip');

-- One row for each content, whoever has it.
CREATE TABLE blobs (
    digest bytea PRIMARY KEY,
    size bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    media_type_id smallint NOT NULL REFERENCES media_types
) PARTITION BY HASH (digest);

-- This repository may serve this blob.
CREATE TABLE repository_blobs (
    namespace_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    digest bytea NOT NULL REFERENCES blobs ON DELETE CASCADE,
    PRIMARY KEY (namespace_id, repository_id, digest),
    FOREIGN KEY (namespace_id, repository_id) REFERENCES repositories ON DELETE CASCADE
) PARTITION BY HASH (namespace_id);
CREATE INDEX ON repository_blobs (digest);

CREATE TABLE manifests (
    namespace_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    size bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    schema_version smallint NOT NULL,
    media_type_id smallint NOT NULL REFERENCES media_types,
    configuration_media_type_id smallint REFERENCES media_types,
    configuration_digest bytea REFERENCES blobs,
    digest bytea NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (namespace_id, repository_id, id),
    UNIQUE (namespace_id, repository_id, digest),
    FOREIGN KEY (namespace_id, repository_id) REFERENCES repositories ON DELETE CASCADE
) PARTITION BY HASH (namespace_id);
CREATE INDEX ON manifests (configuration_digest);

-- Manifest × layer, in each repository that has the manifest.
CREATE TABLE layers (
    namespace_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    manifest_id bigint NOT NULL,
    size bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    media_type_id smallint NOT NULL REFERENCES media_types,
    digest bytea NOT NULL REFERENCES blobs,
    PRIMARY KEY (namespace_id, repository_id, id),
    UNIQUE (namespace_id, repository_id, manifest_id, digest),
    FOREIGN KEY (namespace_id, repository_id, manifest_id) REFERENCES manifests ON DELETE CASCADE
) PARTITION BY HASH (namespace_id);
CREATE INDEX ON layers (digest);

-- An index and its children.
CREATE TABLE manifest_references (
    namespace_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    parent_id bigint NOT NULL,
    child_id bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (namespace_id, repository_id, parent_id, child_id),
    FOREIGN KEY (namespace_id, repository_id, parent_id) REFERENCES manifests ON DELETE CASCADE,
    FOREIGN KEY (namespace_id, repository_id, child_id) REFERENCES manifests,
    CHECK (parent_id <> child_id)
) PARTITION BY HASH (namespace_id);
CREATE INDEX ON manifest_references (namespace_id, repository_id, child_id);

CREATE TABLE tags (
    namespace_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    manifest_id bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz,
    name text NOT NULL,
    PRIMARY KEY (namespace_id, repository_id, name),
    FOREIGN KEY (namespace_id, repository_id, manifest_id) REFERENCES manifests ON DELETE CASCADE
) PARTITION BY HASH (namespace_id);
CREATE INDEX ON tags (namespace_id, repository_id, manifest_id);

-- Who uses a blob, by digest: the tables above are split by namespace, the question is not.
CREATE TABLE blob_layer_uses (
    namespace_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    layer_id bigint NOT NULL,
    digest bytea NOT NULL REFERENCES blobs ON DELETE CASCADE,
    PRIMARY KEY (digest, layer_id),
    FOREIGN KEY (namespace_id, repository_id, layer_id) REFERENCES layers ON DELETE CASCADE
) PARTITION BY HASH (digest);
CREATE INDEX ON blob_layer_uses (namespace_id, repository_id, layer_id);

CREATE TABLE blob_configuration_uses (
    namespace_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    manifest_id bigint NOT NULL,
    digest bytea NOT NULL REFERENCES blobs ON DELETE CASCADE,
    PRIMARY KEY (digest, manifest_id),
    FOREIGN KEY (namespace_id, repository_id, manifest_id) REFERENCES manifests ON DELETE CASCADE
) PARTITION BY HASH (digest);
CREATE INDEX ON blob_configuration_uses (namespace_id, repository_id, manifest_id);

CREATE TABLE blob_review_queue (
    digest bytea PRIMARY KEY REFERENCES blobs ON DELETE CASCADE,
    review_after timestamptz NOT NULL,
    review_count integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    event text NOT NULL
);
CREATE INDEX ON blob_review_queue (review_after);

CREATE TABLE manifest_review_queue (
    namespace_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    manifest_id bigint NOT NULL,
    review_after timestamptz NOT NULL,
    review_count integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    event text NOT NULL,
    PRIMARY KEY (namespace_id, repository_id, manifest_id),
    FOREIGN KEY (namespace_id, repository_id, manifest_id) REFERENCES manifests ON DELETE CASCADE
);
CREATE INDEX ON manifest_review_queue (review_after);

DO $$
DECLARE
    parent regclass;
    part integer;
BEGIN
    FOREACH parent IN ARRAY ARRAY['blobs', 'repository_blobs', 'manifests', 'layers', 'manifest_references', 'tags',
                                  'blob_layer_uses', 'blob_configuration_uses']::regclass[]
    LOOP
        FOR part IN 0..63 LOOP
            EXECUTE format('CREATE TABLE %I PARTITION OF %s FOR VALUES WITH (MODULUS 64, REMAINDER %s)',
                           parent::text || '_' || part, parent, part);
        END LOOP;
    END LOOP;
END
$$;

-- The triggers. A review that is due is postponed by every new event: the collector locks the queue's row
-- while it looks, so an insert and a review of the same blob or manifest cannot pass each other.

CREATE FUNCTION review_blob(blob bytea, reason text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO blob_review_queue (digest, review_after, event)
    VALUES (blob, now() + interval '1 day', reason)
    ON CONFLICT (digest) DO UPDATE SET review_after = EXCLUDED.review_after, event = EXCLUDED.event
$$;

CREATE FUNCTION review_manifest(namespace bigint, repository bigint, manifest bigint, reason text)
RETURNS void LANGUAGE sql AS $$
    -- A cascade may have taken the manifest already: then there is nothing to review.
    INSERT INTO manifest_review_queue (namespace_id, repository_id, manifest_id, review_after, event)
    SELECT namespace_id, repository_id, id, now() + interval '1 day', reason
    FROM manifests WHERE namespace_id = namespace AND repository_id = repository AND id = manifest
    ON CONFLICT (namespace_id, repository_id, manifest_id)
    DO UPDATE SET review_after = EXCLUDED.review_after, event = EXCLUDED.event
$$;

-- On the way in the row is known to be there: written out, since these run for every push.
CREATE FUNCTION blob_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO blob_review_queue (digest, review_after, event)
    VALUES (NEW.digest, now() + interval '1 day', 'blob_upload')
    ON CONFLICT (digest) DO UPDATE SET review_after = EXCLUDED.review_after, event = EXCLUDED.event;
    RETURN NULL;
END
$$;

CREATE FUNCTION manifest_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO manifest_review_queue (namespace_id, repository_id, manifest_id, review_after, event)
    VALUES (NEW.namespace_id, NEW.repository_id, NEW.id, now() + interval '1 day', 'manifest_upload');
    RETURN NULL;
END
$$;

CREATE FUNCTION configuration_used() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO blob_configuration_uses (namespace_id, repository_id, manifest_id, digest)
    VALUES (NEW.namespace_id, NEW.repository_id, NEW.id, NEW.configuration_digest)
    ON CONFLICT (digest, manifest_id) DO NOTHING;
    RETURN NULL;
END
$$;

CREATE FUNCTION layer_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO blob_layer_uses (namespace_id, repository_id, layer_id, digest)
    VALUES (NEW.namespace_id, NEW.repository_id, NEW.id, NEW.digest)
    ON CONFLICT (digest, layer_id) DO NOTHING;
    RETURN NULL;
END
$$;

CREATE FUNCTION manifest_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM review_blob(OLD.configuration_digest, 'manifest_delete');
    RETURN NULL;
END
$$;

CREATE FUNCTION layer_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM review_blob(OLD.digest, 'layer_delete');
    RETURN NULL;
END
$$;

CREATE FUNCTION child_released() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM review_manifest(OLD.namespace_id, OLD.repository_id, OLD.child_id, 'index_delete');
    RETURN NULL;
END
$$;

CREATE FUNCTION tag_left() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM review_manifest(OLD.namespace_id, OLD.repository_id, OLD.manifest_id, TG_ARGV[0]);
    RETURN NULL;
END
$$;

CREATE TRIGGER blob_added AFTER INSERT ON blobs FOR EACH ROW EXECUTE FUNCTION blob_added();
CREATE TRIGGER manifest_added AFTER INSERT ON manifests FOR EACH ROW EXECUTE FUNCTION manifest_added();
CREATE TRIGGER configuration_used AFTER INSERT ON manifests FOR EACH ROW
    WHEN (NEW.configuration_digest IS NOT NULL) EXECUTE FUNCTION configuration_used();
CREATE TRIGGER layer_added AFTER INSERT ON layers FOR EACH ROW EXECUTE FUNCTION layer_added();
CREATE TRIGGER manifest_deleted AFTER DELETE ON manifests FOR EACH ROW
    WHEN (OLD.configuration_digest IS NOT NULL) EXECUTE FUNCTION manifest_deleted();
CREATE TRIGGER layer_deleted AFTER DELETE ON layers FOR EACH ROW EXECUTE FUNCTION layer_deleted();
CREATE TRIGGER child_released AFTER DELETE ON manifest_references FOR EACH ROW EXECUTE FUNCTION child_released();
CREATE TRIGGER tag_deleted AFTER DELETE ON tags FOR EACH ROW EXECUTE FUNCTION tag_left('tag_delete');
CREATE TRIGGER tag_moved AFTER UPDATE OF manifest_id ON tags FOR EACH ROW
    WHEN (OLD.manifest_id IS DISTINCT FROM NEW.manifest_id) EXECUTE FUNCTION tag_left('tag_move');
