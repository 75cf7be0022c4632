"""What users are told beside the pages that they asked for: mails, hooks, announcements."""
