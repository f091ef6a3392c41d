"""Enrolment of edge nodes over HTTPS: signs their certificates, and keeps nothing."""
