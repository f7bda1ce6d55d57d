"""What tests are made with: origins, clients, a dduct of their own, and proof that nothing was left behind."""
