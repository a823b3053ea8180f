-- large enough to be streamed before it commits, with a part that is rolled back after it was streamed
\set dice random(1, 4)
\set base random(1, 5)
BEGIN;
UPDATE shop.measure SET value = value + 1, remark = shop.text() WHERE id % 5 = :base - 1;
SAVEPOINT half;
INSERT INTO shop.measure SELECT 'south', :base * 10000 + n, n, NULL, repeat('streamed', 100) FROM generate_series(1, 80) n
    ON CONFLICT DO NOTHING;
UPDATE shop.item SET body = repeat('streamed ', 400) WHERE id % 5 = :base - 1;
\if :dice = 1
ROLLBACK TO half;
\endif
DELETE FROM shop.measure WHERE id BETWEEN :base * 10000 + 20 AND :base * 10000 + 60;
\if :dice = 2
ROLLBACK;
\else
COMMIT;
\endif
