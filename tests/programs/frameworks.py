"""Databases of frameworks: an application of each, with its migrations, and with a model of every kind."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.programs.catalog import program, run

DJANGO_SETTINGS = """
SECRET_KEY = "secret"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "site_urls"
SITE_ID = 1
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.db"}}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "site cache"}}
INSTALLED_APPS = [
    f"django.contrib.{name}"
    for name in ("admin", "auth", "contenttypes", "flatpages", "messages", "redirects", "sessions", "sites")
] + ["shop"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
"""
DJANGO_URLS = """
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
"""
DJANGO_MODELS = """
import uuid

from django.contrib import admin
from django.contrib.auth.models import User
from django.db import models


class Tag(models.Model):
    name = models.CharField(max_length=30, primary_key=True, db_collation="NOCASE")


class Article(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    title = models.CharField(max_length=100, unique=True)
    slug = models.SlugField()
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    rating = models.FloatField(db_index=True)
    on = models.DateTimeField()
    takes = models.DurationField(null=True)
    data = models.JSONField(default=dict)
    raw = models.BinaryField(null=True)
    is_out = models.BooleanField(default=False)
    double = models.GeneratedField(
        expression=models.F("rating") * 2, output_field=models.FloatField(), db_persist=False
    )
    tags = models.ManyToManyField(Tag)
    authors = models.ManyToManyField(User, through="Writes")

    class Meta:
        db_table = "shop, all/articles"


class Writes(models.Model):
    user = models.ForeignKey(User, on_delete=models.CASCADE)
    article = models.ForeignKey(Article, on_delete=models.CASCADE)
    share = models.PositiveSmallIntegerField(db_column="share, in %")

    class Meta:
        unique_together = [("user", "article")]


if hasattr(models, "CompositePrimaryKey"):

    class Line(models.Model):
        pk = models.CompositePrimaryKey("order", "number")
        order = models.IntegerField()
        number = models.IntegerField()
        text = models.TextField(null=True)


admin.site.register(Article)
admin.site.register(Tag)
"""


@program("django", "Django")
def django() -> None:
    """A site with sessions, an admin that was used, flat pages, a cache in a table, and an app of many fields."""
    Path("site_settings.py").write_text(DJANGO_SETTINGS)
    Path("site_urls.py").write_text(DJANGO_URLS)
    Path("shop").mkdir()
    Path("shop/__init__.py").write_text("")
    Path("shop/models.py").write_text(DJANGO_MODELS)
    for command in (["makemigrations", "shop"], ["migrate"], ["createcachetable"]):
        run("python", "-m", "django", *command, "--settings=site_settings", "--pythonpath=.")
    Path("use.py").write_text(DJANGO_USE)
    run("python", "use.py")


DJANGO_USE = """
import os
from datetime import datetime, timedelta, timezone
from decimal import Decimal

os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
import django

django.setup()
from django.contrib.auth.models import Group, Permission, User
from django.contrib.flatpages.models import FlatPage
from django.contrib.redirects.models import Redirect
from django.core.cache import cache
from django.test import Client

from shop import models
from shop.models import Article, Tag, Writes

users = [User.objects.create_superuser(f"admin{n}", f"a{n}@example.org", "pass") for n in range(3)]
users += [User.objects.create_user(f"user {n}", password=None) for n in range(20)]
group = Group.objects.create(name="editors")
group.permissions.set(Permission.objects.all()[:9])
for user in users[::2]:
    user.groups.add(group)
    user.user_permissions.add(Permission.objects.last())
for name in ("Django", "python", "SQLite", "Ünder"):
    Tag.objects.create(name=name)
for n in range(60):
    article = Article.objects.create(
        title=f"Article {n}",
        slug=f"a-{n % 9}",
        price=None if n % 5 == 0 else Decimal(n) / 4,
        rating=n / 3,
        on=datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(hours=n),
        takes=timedelta(seconds=n) if n % 2 else None,
        data={"n": n, "list": [n, None]},
        raw=bytes([n]) * n if n % 3 else None,
        is_out=n % 4 == 0,
    )
    article.tags.set(Tag.objects.all()[: n % 5])
    Writes.objects.create(user=users[n % 7], article=article, share=n % 3)
if hasattr(models, "Line"):
    for n in range(40):
        models.Line.objects.create(order=n % 6, number=n, text=None if n % 4 else f"line {n}")
client = Client()
for user in users[:3]:
    client.logout()
    assert client.login(username=user.username, password="pass")
    answer = client.post("/admin/shop/tag/add/", {"name": f"made by {user}"})
    assert answer.status_code == 302, answer
page = FlatPage.objects.create(url="/about/", title="About", content="...")
page.sites.add(1)
Redirect.objects.create(site_id=1, old_path="/old", new_path="/about/")
for n in range(10):
    cache.set(f"key {n}", {"n": n}, 3600)
"""


@program("sqlalchemy", "SQLAlchemy", "alembic")
def sqlalchemy() -> None:
    """Models of many types, made by migrations that alembic found out."""
    Path("models.py").write_text(SQLALCHEMY_MODELS)
    run("python", "-m", "alembic", "init", "migrations")
    ini, env = Path("alembic.ini"), Path("migrations/env.py")
    ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", "sqlite:///app.db"))
    env.write_text("import models\n" + env.read_text().replace("= None", "= models.Base.metadata"))
    run("python", "-m", "alembic", "revision", "--autogenerate", "-m", "all tables")
    run("python", "-m", "alembic", "upgrade", "head")
    run("python", "models.py")


SQLALCHEMY_MODELS = """
import enum
import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal

from sqlalchemy import *
from sqlalchemy.orm import *


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


likes = Table(
    "likes",
    Base.metadata,
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("item_id", ForeignKey("item.uid"), primary_key=True),
)
watch = Table("watch, no key", Base.metadata, Column("what", Text), Column("count", Integer, index=True))


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(30), unique=True)
    colour: Mapped[Colour | None]
    born: Mapped[date | None]
    rises: Mapped[time | None]
    boss_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))
    likes = relationship("Item", secondary=likes)


class Item(Base):
    __tablename__ = "item"
    uid: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    exact: Mapped[bool]
    on: Mapped[datetime]
    takes: Mapped[timedelta | None]
    blob: Mapped[bytes | None]
    data: Mapped[dict | None] = mapped_column(JSON)
    pickled: Mapped[object | None] = mapped_column(PickleType)
    weight: Mapped[float | None]
    double: Mapped[float | None] = mapped_column(Computed("weight * 2", persisted=True))


class Stock(Base):
    __tablename__ = "stock"
    __table_args__ = {"sqlite_with_rowid": False}
    place: Mapped[str] = mapped_column(primary_key=True)
    shelf: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[bytes] = mapped_column(primary_key=True)
    count: Mapped[int | None] = mapped_column(BigInteger)


class Odd(Base):
    __tablename__ = "odd \\"table\\" / name"
    key: Mapped[float] = mapped_column("key, of REAL", primary_key=True)
    text: Mapped[str] = mapped_column("a \\"column\\"", String(collation="NOCASE"))


if __name__ == "__main__":
    with Session(create_engine("sqlite:///app.db")) as session:
        items = [
            Item(
                uid=uuid.UUID(int=n * 7**30 % 2**128),
                price=Decimal(n) / 8 if n % 3 else None,
                exact=n % 2 == 0,
                on=datetime(2024, 1, 1) + timedelta(minutes=n),
                takes=timedelta(hours=n),
                blob=bytes([n]) * 3 if n % 4 else None,
                data={"n": n} if n % 5 else None,
                pickled=(n, n),
                weight=n / 4,
            )
            for n in range(50)
        ]
        session.add_all(items)
        for n in range(40):
            user = User(name=f"user {n}", colour=[None, *Colour][n % 3], born=date(2000, 1, 1), rises=time(7, n))
            user.boss_id = n // 2 or None
            user.likes = items[n % 5 : n % 11]
            session.add(user)
            session.add(Stock(place=f"p{n % 4}", shelf=n % 7, code=bytes([n]), count=n * 2**40))
            session.add(Odd(key=n / 2 + 0.25, text=f"Text {n}"))
            session.execute(watch.insert().values(what=f"w{n % 6}", count=n % 3))
        session.commit()
"""


@program("peewee", "peewee")
def peewee() -> None:
    """Models with composite and typeless keys, none, full-text search, many to many, and a key-value table."""
    import peewee as pw
    from playhouse.kv import KeyValue
    from playhouse.sqlite_ext import FTS5Model, SearchField

    db = pw.SqliteDatabase("peewee.db")

    class Base(pw.Model):
        class Meta:
            database = db

    class Person(Base):
        name = pw.CharField(index=True)
        joined = pw.DateField(null=True)

    class Course(Base):
        code = pw.CharField(primary_key=True, collation="NOCASE")
        people = pw.ManyToManyField(Person, backref="courses")

    class Mark(Base):
        person = pw.ForeignKeyField(Person)
        course = pw.ForeignKeyField(Course)
        mark = pw.DecimalField(null=True)

        class Meta:
            primary_key = pw.CompositeKey("person", "course")

    class Log(Base):
        line = pw.TextField()
        extra = pw.BareField(null=True)

        class Meta:
            primary_key = False

    class Thing(Base):
        id = pw.BlobField(primary_key=True)
        uid = pw.UUIDField(default=uuid.uuid4)

    class Page(FTS5Model):
        title = SearchField()
        body = SearchField(unindexed=True)

        class Meta:
            database = db

    through = Course.people.get_through_model()
    db.create_tables([Person, Course, Mark, Log, Thing, Page, through])
    people = [Person.create(name=f"P {n % 9}", joined=date(2020, 1, 1 + n) if n % 3 else None) for n in range(25)]
    courses = [Course.create(code=code) for code in ("Maths", "art", "ÄRT", "Sport")]
    for n, person in enumerate(people):
        person.courses.add(courses[n % 4])
        Mark.create(person=person, course=courses[n % 3], mark=Decimal(n) / 4 if n % 4 else None)
        Log.create(line=f"line {n}", extra=[n, str(n), n / 2, None, b"x"][n % 5])
        Thing.create(id=bytes([n, 255]))
        Page.create(title=f"Title {n}", body="word " * n)
    settings = KeyValue(database=db, table_name="settings")
    for n in range(10):
        settings[f"key {n}"] = n
    db.close()


@program("dataset", "dataset")
def dataset() -> None:
    """Tables that came to be by inserting into them."""
    import dataset

    db = dataset.connect("sqlite:///dataset.db")
    for n in range(60):
        row: dict[str, Any] = {"name": f"n{n}", "x": n / 4, "when": datetime(2024, 1, 1, tzinfo=UTC) + timedelta(n)}
        if n % 3:
            row["extra"] = n % 2 == 0
        db["things"].insert(row)
    people = db.create_table("people", primary_id="name", primary_type=db.types.string(20))
    people.insert_many([{"name": f"person {n}", "age": n % 30} for n in range(30)])
    people.create_index(["age"])
    db.create_table("no key", primary_id=False).insert_many([{"a": n % 3, "b": str(n)} for n in range(10)])
    db.close()


@program("mlflow", "mlflow-skinny", "SQLAlchemy", "alembic")
def mlflow() -> None:
    """Experiments with runs, parameters, metrics (NaN among them), tags and a model that is registered."""
    import mlflow

    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    for name in ("one", "twö"):
        mlflow.set_experiment(name)
        for number in range(4):
            with mlflow.start_run(run_name=f"run {number}"):
                mlflow.log_params({"rate": number / 8, "depth": number})
                for step in range(5):
                    mlflow.log_metrics({"loss": 1 / (step + 1), "odd": float("nan")}, step=step)
                mlflow.set_tag("kind", "test")
    mlflow.MlflowClient().create_registered_model("model")
