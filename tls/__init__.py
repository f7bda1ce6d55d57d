"""The authority, leaf certificates, and direct settings of OpenSSL."""
