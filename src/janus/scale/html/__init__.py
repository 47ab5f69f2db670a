"""Reports as one self-contained HTML page: no request leaves it, and it prints."""

from janus.scale.html.days import days_page
from janus.scale.html.plan import plan_page

__all__ = ["days_page", "plan_page"]
