\set id random(1, 300)
\set dice random(1, 3)
BEGIN;
UPDATE shop.item SET name = 'prepared', photo = decode(repeat('ab', 3000), 'hex') WHERE id = :id;
INSERT INTO shop.item (id, name) VALUES (:id + 300, 'prepared') ON CONFLICT (id) DO UPDATE SET name = excluded.name;
PREPARE TRANSACTION 'torment :run :client_id';
\if :dice = 1
ROLLBACK PREPARED 'torment :run :client_id';
\else
COMMIT PREPARED 'torment :run :client_id';
\endif
