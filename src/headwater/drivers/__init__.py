"""Database access below the dialects: connections that move Arrow record batches."""
