"""The sections of ``report.html``, an idea each; :mod:`reports.html` puts them together."""
