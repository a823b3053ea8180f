-- The application: pgbench's own tables, and a shop with everything that makes logical decoding hard.
CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));
CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
INSERT INTO pgbench_branches VALUES (1, 0, '');
INSERT INTO pgbench_tellers SELECT n, 1, 0, '' FROM generate_series(1, 10) n;
INSERT INTO pgbench_accounts SELECT n, 1, 0, '' FROM generate_series(1, 1000) n;

CREATE SCHEMA shop;
CREATE SEQUENCE shop.versions;

-- random texts: none, short, or too long for the page and therefore TOAST
CREATE FUNCTION shop.text() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT CASE width_bucket(random(), 0, 1, 10) WHEN 1 THEN NULL WHEN 2 THEN '' WHEN 3 THEN 'π ≈ 3,14159'
        WHEN 4 THEN 'it''s "quoted", \slashed {and} braced' ELSE repeat(md5(random()::text), (65 + random() * 60)::int) END
$$;

CREATE TABLE shop.item (
    id int PRIMARY KEY,
    version bigint NOT NULL,
    name text,
    price numeric(10,2),
    amount numeric,
    tags int[],
    body text,
    photo bytea,
    seen timestamptz DEFAULT now()
);
ALTER TABLE shop.item ALTER body SET STORAGE EXTERNAL, ALTER photo SET STORAGE EXTERNAL;

CREATE TABLE shop.note (id bigint PRIMARY KEY, state text NOT NULL, author text, body text, at timestamp DEFAULT now());
ALTER TABLE shop.note REPLICA IDENTITY FULL;
ALTER TABLE shop.note ALTER body SET STORAGE EXTERNAL;

CREATE TABLE shop.measure (region text, id int, value float8, place uuid, remark text, PRIMARY KEY (region, id))
    PARTITION BY LIST (region);
CREATE TABLE shop.measure_north PARTITION OF shop.measure FOR VALUES IN ('north');
CREATE TABLE shop.measure_south PARTITION OF shop.measure FOR VALUES IN ('south');

-- what the stream of shop.item must tell, told by somebody else
CREATE TABLE shop.audit (
    seq bigserial PRIMARY KEY, xid bigint, lsn pg_lsn, op "char", old_id int, id int, version bigint
);
CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := nextval('shop.versions');
    RETURN NEW;
END $$;
CREATE FUNCTION shop.audited() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    me bigint := pg_current_xact_id()::text::bigint;
    place pg_lsn := pg_current_wal_insert_lsn();
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO shop.audit (xid, lsn, op, old_id) SELECT me, place, 't', id FROM shop.item;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO shop.audit (xid, lsn, op, id, version) VALUES (me, place, 'c', NEW.id, NEW.version);
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO shop.audit (xid, lsn, op, old_id, id, version) VALUES (me, place, 'u', OLD.id, NEW.id, NEW.version);
    ELSE
        INSERT INTO shop.audit (xid, lsn, op, old_id) VALUES (me, place, 'd', OLD.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON shop.item FOR EACH ROW EXECUTE FUNCTION shop.stamp();
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON shop.item FOR EACH ROW EXECUTE FUNCTION shop.audited();
CREATE TRIGGER emptied BEFORE TRUNCATE ON shop.item FOR EACH STATEMENT EXECUTE FUNCTION shop.audited();

-- a change of keys that gives up quietly where the new one is taken: a subtransaction, often rolled back
CREATE FUNCTION shop.rekey(was int, becomes int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE shop.item SET id = becomes WHERE id = was;
EXCEPTION WHEN unique_violation THEN
    UPDATE shop.item SET name = 'stayed' WHERE id = was;
END $$;

INSERT INTO shop.item (id, name, price, amount, tags, body, photo)
    SELECT n, 'item ' || n, n * 1.25, n / 7.0, ARRAY[n, NULL], shop.text(), decode(md5(n::text), 'hex')
    FROM generate_series(1, 300) n;
INSERT INTO shop.note (id, state, author, body)
    SELECT n, CASE WHEN n % 3 = 0 THEN 'draft' ELSE 'public' END, 'author ' || n % 7, shop.text() FROM generate_series(1, 200) n;
INSERT INTO shop.measure
    SELECT CASE WHEN n % 2 = 0 THEN 'north' ELSE 'south' END, n, n / 3.0, md5(n::text)::uuid, shop.text() FROM generate_series(1, 400) n;
