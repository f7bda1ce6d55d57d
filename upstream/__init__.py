"""Origins: dialled, verified, asked, kept alive, relayed."""
