-- columns that no mapping knows come and go, with rows that use them in the same transaction
\set n random(1, 2)
\set id random(1, 300)
BEGIN;
ALTER TABLE shop.item ADD COLUMN IF NOT EXISTS extra_:n text DEFAULT 'new';
UPDATE shop.item SET extra_:n = 'set', price = price - 1 WHERE id BETWEEN :id AND :id + 3;
COMMIT;
BEGIN;
ALTER TABLE shop.measure ADD COLUMN IF NOT EXISTS more_:n int;
UPDATE shop.measure SET value = value + 1, more_:n = :id WHERE id BETWEEN :id AND :id + 2;
COMMIT;
ALTER TABLE shop.item DROP COLUMN IF EXISTS extra_:n;
