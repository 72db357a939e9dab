"""The library behind Spillover's programs: one subject a module, nothing imported here."""
