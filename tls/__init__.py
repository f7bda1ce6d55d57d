"""The authority, leaf certificates, and what OpenSSL needs to be told."""
