"""Caption files in the encodings that editors write. The oracle is Python's own encoder: what it wrote is read."""

import codecs
import sys

import pytest
from bespoke.nodes.images.captions import encodings
from bespoke.nodes.images.captions.encodings import decide
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.sheet import describe
from PIL import Image

SETS = {
    "English with curly quotes": (
        "cp1252",
        ["a “red” fox sitting in the snow", "a girl’s portrait, soft light…", "a dog’s paw"],
    ),
    "one curly quote": ("cp1252", ["it’s a cat"]),
    "signs": ("cp1252", ["100 °C, © 2020, ½ cup", "5 €"]),
    "French": ("cp1252", ["une fille à la fenêtre, été", "un château médiéval, près de la forêt", "café"]),
    "German": ("cp1252", ["ein Mädchen mit grünem Hut", "schöne Straße im Frühling", "ein großer Bär im Schnee"]),
    "Spanish": ("cp1252", ["una niña con sombrero", "el niño y la montaña, día de otoño", "retrato en España"]),
    "Portuguese": ("cp1252", ["uma menina de vestido azul, luz da manhã", "pão, coração"]),
    "Italian": ("cp1252", ["una città di notte, perché è buio", "la ragazza è più felice"]),
    "Norwegian": ("cp1252", ["en rød katt på vinduet", "blå kjole, jente"]),
    "Icelandic": ("cp1252", ["köttur á þaki, rauður", "það er snjór í fjöllunum"]),
    "Czech": ("cp1250", ["červená kočka sedí na okně", "dívka v modrých šatech, večerní světlo", "pes běží"]),
    "Polish": ("cp1250", ["dziewczyna w niebieskiej sukience, światło", "pies biegnie przez śnieg, żółty liść"]),
    "Hungarian": ("cp1250", ["vörös macska ül az ablakban, őszi fény", "kék ruhás lány, erdő"]),
    "Turkish": ("cp1254", ["pencerede oturan kırmızı kedi", "mavi elbiseli kız, akşam ışığı", "karda koşan köpek"]),
    "Lithuanian": ("cp1257", ["raudona katė sėdi ant palangės", "mergaitė mėlyna suknele, šviesa"]),
    "Russian": ("cp1251", ["рыжая кошка сидит на окне", "девушка в красном платье, вечерний свет", "снег"]),
    "Russian and English tags": ("cp1251", ["photo, рыжая кошка, window", "девушка, red dress, evening"]),
    "Russian of Unix": ("koi8_r", ["photo, рыжая кошка", "девушка в красном платье", "Москва"]),
    "Greek": ("cp1253", ["μια κόκκινη γάτα κάθεται στο παράθυρο", "κορίτσι με μπλε φόρεμα, βραδινό φως"]),
    "Hebrew": ("cp1255", ["חתול אדום יושב על החלון", "ילדה בשמלה כחולה, אור ערב"]),
    "Arabic": ("cp1256", ["قطة حمراء تجلس على النافذة", "فتاة بفستان أزرق، ضوء المساء"]),
    "Thai": ("cp874", ["แมวสีแดงนั่งที่หน้าต่าง", "เด็กหญิงในชุดสีน้ำเงิน แสงยามเย็น"]),
    "Chinese": ("gb18030", ["一只红色的猫坐在窗台上", "穿着蓝色连衣裙的女孩，傍晚的光线", "河边的老房子"]),
    "Chinese and English tags": ("gb18030", ["1girl, 红色头发, 微笑", "1girl, 蓝色眼睛, 站立"]),
    "traditional Chinese": ("big5", ["一隻紅色的貓坐在窗台上", "穿著藍色連衣裙的女孩，傍晚的光線"]),
    "Japanese": ("cp932", ["赤い猫が窓辺に座っている", "青いドレスを着た少女、夕方の光", "雪の中を走る犬"]),
    "Japanese and English tags": ("cp932", ["1girl, 赤い髪, 笑顔", "1girl, 青い目, 立っている"]),
    "Japanese of Unix": ("euc_jp", ["赤い猫が窓辺に座っている", "青いドレスを着た少女、夕方の光"]),
    "Japanese of mails": ("iso2022_jp", ["赤い猫が窓辺に座っている"]),
    "Korean": ("cp949", ["창가에 앉아 있는 빨간 고양이", "파란 드레스를 입은 소녀, 저녁 빛"]),
    "UTF-16 without a mark": ("utf-16-le", ["a dog", "a “red” fox", "une fille à la fenêtre", "一只红色的猫, 狗"]),
    "UTF-16 with swapped bytes": ("utf-16-be", ["a dog", "a “red” fox", "une fille à la fenêtre", "一只红色的猫, 狗"]),
    "UTF-32 without a mark": ("utf-32-le", ["a dog", "一只红色的猫"]),
    "UTF-32 with swapped bytes": ("utf-32-be", ["a dog", "一只红色的猫"]),
    "Chinese UTF-16 without a zero byte": ("utf-16-le", ["红色的猫，狗", "a dog"]),
}


@pytest.mark.parametrize("name", SETS)
def test_encodings_are_decided_over_all_files(name):
    encoding, texts = SETS[name]
    files = [text.encode(encoding) for text in texts]
    read = [data.decode(decision.encoding) for data, decision in zip(files, decide(files), strict=True)]
    assert read == texts


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", ["a dog", "a “red” fox", "赤い猫"])
def test_marks(tmp_path, encoding, text):
    assert captions_of(tmp_path, [text.encode(encoding)])[0] == [text]


def test_utf_16_big_endian_with_its_mark(tmp_path):
    assert captions_of(tmp_path, [codecs.BOM_UTF16_BE + "赤い猫".encode("utf-16-be")])[0] == ["赤い猫"]


def captions_of(folder, files):
    """(captions in the order of the files, the report) of a folder with a picture for each caption file."""
    for i, data in enumerate(files):
        Image.new("RGB", (96, 80), (9 * i, 200, 40)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_bytes(data)
    images = read_folder(FolderRequest(folder))
    return [item.caption for item in images.items], describe(images)


def test_utf_8_files_stay_and_the_others_are_decided_together(tmp_path):
    """ "кот" alone has the bytes of "êîò" in Windows-1252."""
    texts = ["naïve fox", "кот", "рыжая кошка сидит на окне", "девушка в красном платье", "a plain dog"]
    files = [texts[0].encode(), *(text.encode("cp1251") for text in texts[1:4]), texts[4].encode()]
    captions, report = captions_of(tmp_path, files)
    assert captions == texts
    assert "Caption files: 3 as Windows-1251, 2 as UTF-8. Not UTF-8: 1.txt, 2.txt, 3.txt." in report


def test_utf_8_alone_needs_no_note(tmp_path):
    captions, report = captions_of(tmp_path, ["naïve fox".encode(), b"a dog"])
    assert captions == ["naïve fox", "a dog"]
    assert "Caption files" not in report


def test_files_that_no_encoding_fits_are_named(tmp_path):
    """A UTF-16 file that was cut in the middle of a character loses one; the report names the file and the number."""
    captions, report = captions_of(tmp_path, ["a dog".encode("utf-16")[:-1], b"a fox"])
    assert captions == ["a do\ufffd", "a fox"]
    assert "Characters that no encoding has, shown as \ufffd: 0.txt (1)." in report


@pytest.mark.parametrize("text", ["girl’s_hat", "artist’s_self-portrait", "don’t_look_at_me", "the dog’s coat"])
def test_windows_text_beside_a_utf_16_file_is_no_chinese(tmp_path, text):
    """Two letters of ASCII are the bytes of one character of Chinese: a Windows-1252 file of an even length beside a
    UTF-16 file, as PowerShell writes it, must come out as its own text.
    """
    data = text.encode("cp1252")
    captions, _ = captions_of(tmp_path, ["a dog, 红色".encode("utf-16"), data + b" " * (len(data) % 2)])
    assert captions == ["a dog, 红色", text]


def test_two_encodings_in_a_folder(tmp_path):
    """No single-byte encoding but some fit both; a byte that Windows-1251 lacks and Chinese tell them apart."""
    texts = ["一只红色的猫坐在窗台上，傍晚的光线", "рыжая кошка сидит на окне"]
    captions, report = captions_of(tmp_path, [texts[0].encode("gb18030"), texts[1].encode("utf-8")])
    assert captions == texts
    assert "1 as GBK, 1 as UTF-8" in report


@pytest.mark.parametrize(
    "texts",
    [
        {"cp932": "赤い犬が走っています", "cp1252": "a “quoted” café"},
        {"cp1251": "собака на траве", "cp1252": "a “quoted” café"},
        {"gb18030": "中文的说明文字", "cp1252": "une forêt très verte"},
        {
            "cp1251": "собака на траве",
            "cp932": "赤い犬が走っています",
            "cp1252": "“café” über",
            "gb18030": "中文的说明文字",
        },
    ],
    ids=lambda texts: " ".join(texts),
)
def test_a_folder_that_was_put_together_from_several(tmp_path, texts):
    """KOI8-R and Thai fit any bytes, and all files came out as noise in one of them. The oracle is what was encoded."""
    captions, report = captions_of(tmp_path, [text.encode(encoding) for encoding, text in texts.items()])
    assert captions == list(texts.values())
    assert "KOI8-R" not in report
    assert "Windows-874" not in report


def test_without_charset_normalizer_a_guess_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings, "charset_normalizer", None)
    captions, report = captions_of(tmp_path, [text.encode("cp1252") for text in SETS["French"][1]])
    assert captions == SETS["French"][1]  # the letters of the language tell
    assert "is a guess" not in report
    _, report = captions_of(tmp_path, ["홍길동".encode("cp949")])
    for path in tmp_path.glob("[12].*"):
        path.unlink()
    captions, report = captions_of(tmp_path, ["가나다라".encode("cp949")])
    assert "The encoding of 0.txt is a guess, since the package charset-normalizer" in report


def test_charset_normalizer_is_there():
    """ComfyUI's requirements bring it through requests, so the suite must not pass without it."""
    assert encodings.charset_normalizer is sys.modules["charset_normalizer"]
