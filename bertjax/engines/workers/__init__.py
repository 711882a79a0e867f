"""An engine that is many: processes here, or Ray actors anywhere."""
