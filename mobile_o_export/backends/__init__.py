"""How components become files and files become outputs, one folder a vendor; nothing else imports an SDK."""
