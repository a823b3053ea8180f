-- changed keys, rows that move to another partition, rows that enter and leave the stream's `where`
\set a random(1, 300)
\set b random(1, 330)
\set id random(1, 400)
\set dice random(1, 3)
BEGIN;
SELECT shop.rekey(:a, :b);
UPDATE shop.measure SET region = CASE region WHEN 'north' THEN 'south' ELSE 'north' END, value = :dice WHERE id = :id;
UPDATE shop.note SET state = CASE state WHEN 'draft' THEN 'public' ELSE 'draft' END WHERE id = :a;
\if :dice = 1
DELETE FROM shop.note WHERE id = :b;
INSERT INTO shop.measure VALUES ('north', :id + 400, 'NaN', NULL, shop.text()) ON CONFLICT DO NOTHING;
\endif
SELECT pg_logical_emit_message(true, 'application', 'nothing to do with anybody');
SELECT shop.rekey(:b, :a);
COMMIT;
