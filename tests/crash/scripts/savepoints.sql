\set id random(1, 300)
\set dice random(1, 4)
BEGIN;
UPDATE shop.item SET name = 'kept' WHERE id = :id;
SAVEPOINT one;
UPDATE shop.item SET name = 'lost', body = shop.text() WHERE id BETWEEN :id AND :id + 5;
SAVEPOINT two;
DELETE FROM shop.item WHERE id BETWEEN :id + 2 AND :id + 4;
ROLLBACK TO two;
INSERT INTO shop.note VALUES (:id + 1000, 'public', 'lost', shop.text()) ON CONFLICT DO NOTHING;
ROLLBACK TO one;
UPDATE shop.item SET amount = coalesce(amount, 0) + 0.5 WHERE id BETWEEN :id AND :id + 1;
SAVEPOINT three;
DELETE FROM shop.item WHERE id = :id + 1;
RELEASE three;
\if :dice = 1
ROLLBACK;
\else
COMMIT;
\endif
