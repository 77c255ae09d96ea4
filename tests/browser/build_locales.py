"""Writes locales/<language>/nodeDefs.json: node titles from the table below, input names by one glossary for all nodes.

    python tests/browser/build_locales.py

Run it again when a node or an input is added. Names that are not in the glossary stay in English.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("zh", "ja", "fr", "es")
TITLES = {
    "BespokeImageFolder": ("图片文件夹", "画像フォルダー", "Dossier d'images", "Carpeta de imágenes"),
    "BespokeImageBatch": ("图片批次", "画像バッチ", "Lot d'images", "Lote de imágenes"),
    "BespokeCaptionVariants": ("描述变体", "キャプションの変形", "Variantes de légendes", "Variantes de descripciones"),
    "BespokeCombineImageSets": (
        "合并图片集",
        "画像セットを結合",
        "Combiner des jeux d'images",
        "Combinar conjuntos de imágenes",
    ),
    "BespokeSaveImageSet": (
        "保存图片集",
        "画像セットを保存",
        "Enregistrer le jeu d'images",
        "Guardar conjunto de imágenes",
    ),
    "BespokeTrainLora": ("训练 LoRA", "LoRA を学習", "Entraîner un LoRA", "Entrenar un LoRA"),
    "BespokeFindLearningRate": (
        "寻找学习率",
        "学習率を探す",
        "Trouver le taux d'apprentissage",
        "Hallar la tasa de aprendizaje",
    ),
    "BespokeFindWordLearningRate": (
        "寻找新词的学习率",
        "単語の学習率を探す",
        "Trouver le taux d'apprentissage d'un mot",
        "Hallar la tasa de aprendizaje de una palabra",
    ),
    "BespokeSaveLora": ("保存 LoRA", "LoRA を保存", "Enregistrer le LoRA", "Guardar LoRA"),
    "BespokeLoadLora": ("加载 LoRA", "LoRA を読み込む", "Charger un LoRA", "Cargar LoRA"),
    "BespokeInjectLora": ("注入 LoRA", "LoRA を注入", "Injecter un LoRA", "Inyectar LoRA"),
    "BespokeComposeLoras": ("合成 LoRA", "LoRA を合成", "Composer des LoRA", "Componer LoRA"),
    "BespokeExtractLora": ("提取 LoRA", "LoRA を抽出", "Extraire un LoRA", "Extraer LoRA"),
    "BespokeInspectLora": ("检查 LoRA", "LoRA を調べる", "Examiner un LoRA", "Examinar LoRA"),
    "BespokePartialDenoise": ("部分去噪", "部分ノイズ除去", "Débruitage partiel", "Eliminación parcial de ruido"),
    "BespokeStrengthSigmas": ("强度 sigma", "強度のシグマ", "Sigmas de force", "Sigmas de fuerza"),
    "BespokeLatentMaskBlend": (
        "潜空间遮罩混合",
        "潜在マスクブレンド",
        "Mélange latent par masque",
        "Mezcla latente con máscara",
    ),
    "BespokeRestoreUnmasked": (
        "还原遮罩外",
        "マスク外を復元",
        "Restaurer hors du masque",
        "Restaurar fuera de la máscara",
    ),
    "BespokeTrainTextualInversion": (
        "训练文本反演",
        "Textual Inversion を学習",
        "Entraîner une inversion textuelle",
        "Entrenar inversión textual",
    ),
    "BespokeSaveEmbedding": ("保存嵌入", "埋め込みを保存", "Enregistrer l'embedding", "Guardar embedding"),
    "BespokeApplyEmbedding": ("应用嵌入", "埋め込みを適用", "Appliquer l'embedding", "Aplicar embedding"),
    "BespokeInspectEmbedding": ("检查嵌入", "埋め込みを調べる", "Examiner l'embedding", "Examinar embedding"),
    "BespokeExportLoraJob": (
        "导出 LoRA 任务",
        "LoRA ジョブを書き出す",
        "Exporter la tâche LoRA",
        "Exportar tarea LoRA",
    ),
    "BespokeExportTextualInversionJob": (
        "导出文本反演任务",
        "Textual Inversion ジョブを書き出す",
        "Exporter la tâche d'inversion textuelle",
        "Exportar tarea de inversión textual",
    ),
    "BespokeCompare": ("比较", "比較", "Comparer", "Comparar"),
    "BespokeLoraSweep": ("LoRA 扫描", "LoRA スイープ", "Balayage de LoRA", "Barrido de LoRA"),
    "BespokeInspectRun": ("检查训练", "学習を調べる", "Examiner un entraînement", "Examinar un entrenamiento"),
}
INPUTS = {
    "lowest": ("最低", "最低", "le plus bas", "el más bajo"),
    "highest": ("最高", "最高", "le plus haut", "el más alto"),
    "probes": ("试验数", "試行数", "essais", "pruebas"),
    "sets": ("图片集", "画像セット", "jeux d'images", "conjuntos de imágenes"),
    "weights": ("权重", "重み", "poids", "pesos"),
    "balance": ("平衡", "バランス", "équilibre", "equilibrio"),
    "resolutions": ("分辨率（多个）", "解像度（複数）", "résolutions", "resoluciones"),
    "model": ("模型", "モデル", "modèle", "modelo"),
    "images": ("图片", "画像", "images", "imágenes"),
    "targets": ("目标层", "対象の層", "couches visées", "capas objetivo"),
    "rank": ("秩", "ランク", "rang", "rango"),
    "learning_rate": ("学习率", "学習率", "taux d'apprentissage", "tasa de aprendizaje"),
    "steps": ("步数", "ステップ数", "étapes", "pasos"),
    "batch_size": ("批次大小", "バッチサイズ", "taille de lot", "tamaño de lote"),
    "seed": ("种子", "シード", "graine", "semilla"),
    "custom_targets": ("自定义目标层", "対象の層（任意）", "couches au choix", "capas a medida"),
    "validation": ("留出图片数", "検証画像数", "images de validation (nombre)", "imágenes de validación (número)"),
    "validation_images": ("验证图片", "検証画像", "images de validation", "imágenes de validación"),
    "lr_schedule": ("学习率曲线", "学習率の推移", "courbe du taux", "curva de la tasa"),
    "warmup_steps": ("预热步数", "ウォームアップ", "étapes de chauffe", "pasos de calentamiento"),
    "optimizer": ("优化器", "オプティマイザー", "optimiseur", "optimizador"),
    "gradient_accumulation": ("梯度累积", "勾配累積", "accumulation du gradient", "acumulación de gradiente"),
    "max_grad_norm": ("最大梯度范数", "勾配ノルム上限", "norme max. du gradient", "norma máx. del gradiente"),
    "loss_weighting": ("损失加权", "損失の重み付け", "pondération de la perte", "ponderación de la pérdida"),
    "timestep_sampling": (
        "时间步采样",
        "タイムステップの抽出",
        "tirage des pas de temps",
        "muestreo de pasos de tiempo",
    ),
    "noise_offset": ("噪声偏移", "ノイズオフセット", "décalage du bruit", "desplazamiento del ruido"),
    "caption_dropout": ("描述丢弃率", "キャプション省略率", "légendes omises", "descripciones omitidas"),
    "precision": ("精度", "精度", "précision", "precisión"),
    "gradient_checkpointing": (
        "梯度检查点",
        "勾配チェックポイント",
        "points de reprise du gradient",
        "puntos de control del gradiente",
    ),
    "save_every": ("保存间隔", "保存間隔", "enregistrer toutes les", "guardar cada"),
    "sample_every": ("采样间隔", "サンプル間隔", "échantillon toutes les", "muestra cada"),
    "sample_prompt": ("采样提示词", "サンプルのプロンプト", "prompt d'échantillon", "prompt de muestra"),
    "keep": ("保留", "残すもの", "garder", "conservar"),
    "resume": ("继续", "再開", "reprendre", "reanudar"),
    "prior_images": ("先验图片", "事前画像", "images a priori", "imágenes previas"),
    "prior_weight": ("先验权重", "事前画像の重み", "poids a priori", "peso previo"),
    "train_text_encoder": (
        "训练文本编码器",
        "テキストエンコーダーも学習",
        "entraîner l'encodeur de texte",
        "entrenar el codificador de texto",
    ),
    "text_encoder_lr": (
        "文本编码器学习率",
        "テキストエンコーダーの学習率",
        "taux de l'encodeur de texte",
        "tasa del codificador de texto",
    ),
    "filename_prefix": ("文件名前缀", "ファイル名の頭", "préfixe du fichier", "prefijo del archivo"),
    "run": ("运行记录", "実行記録", "exécution", "ejecución"),
    "key_format": ("键名格式", "キー形式", "format des clés", "formato de claves"),
    "dtype": ("数值精度", "数値の型", "type de nombre", "tipo de número"),
    "subfolders": ("子文件夹", "サブフォルダー", "sous-dossiers", "subcarpetas"),
    "folder_name": ("文件夹名", "フォルダー名", "nom du dossier", "nombre de la carpeta"),
    "base": ("基础模型", "ベースモデル", "modèle de base", "modelo base"),
    "base_clip": ("基础 CLIP", "ベース CLIP", "CLIP de base", "CLIP base"),
    "energy": ("保留能量", "残すエネルギー", "énergie gardée", "energía conservada"),
    "conv_rank": ("卷积秩", "畳み込みのランク", "rang des convolutions", "rango de convoluciones"),
    "norms_and_biases": ("归一化与偏置", "正規化とバイアス", "normes et biais", "normas y sesgos"),
    "compare_with": ("对比对象", "比べる LoRA", "comparer avec", "comparar con"),
    "lora_name": ("LoRA 文件", "LoRA ファイル", "fichier LoRA", "archivo LoRA"),
    "strength_model": ("模型强度", "モデル強度", "force (modèle)", "fuerza (modelo)"),
    "strength_clip": ("CLIP 强度", "CLIP 強度", "force (CLIP)", "fuerza (CLIP)"),
    "query": ("查询 Q", "クエリ Q", "requête Q", "consulta Q"),
    "key": ("键 K", "キー K", "clé K", "clave K"),
    "value": ("值 V", "バリュー V", "valeur V", "valor V"),
    "out": ("输出", "出力", "sortie", "salida"),
    "blocks": ("区块", "ブロック", "blocs", "bloques"),
    "start_percent": ("开始比例", "開始割合", "début (part)", "inicio (parte)"),
    "end_percent": ("结束比例", "終了割合", "fin (part)", "fin (parte)"),
    "keyframes": ("关键帧", "キーフレーム", "images clés", "fotogramas clave"),
    "partial": ("部分应用", "一部でも適用", "partiel", "parcial"),
    "use_range": ("仅用于训练区间", "学習範囲でのみ使う", "plage entraînée seule", "solo tramo entrenado"),
    "mode": ("方式", "方式", "mode", "modo"),
    "prompts": ("提示词（每行一个）", "プロンプト（一行に一つ）", "prompts (un par ligne)", "prompts (uno por línea)"),
    "loras": ("LoRA 列表", "LoRA の一覧", "liste de LoRA", "lista de LoRA"),
    "strengths": ("强度", "強度", "forces", "fuerzas"),
    "positive": ("正面条件", "ポジティブ", "positif", "positivo"),
    "negative": ("负面条件", "ネガティブ", "négatif", "negativo"),
    "latent_image": ("潜空间图像", "潜在画像", "image latente", "imagen latente"),
    "latent": ("潜空间", "潜在", "latent", "latente"),
    "strength": ("强度", "強度", "force", "fuerza"),
    "sampler_name": ("采样器", "サンプラー", "échantillonneur", "muestreador"),
    "scheduler": ("调度器", "スケジューラー", "planificateur", "planificador"),
    "contract": ("强度约定", "強度の定義", "sens de la force", "sentido de la fuerza"),
    "exact_steps": ("精确步数", "ステップ数を保つ", "étapes exactes", "pasos exactos"),
    "mask": ("遮罩", "マスク", "masque", "máscara"),
    "masks": ("遮罩", "マスク", "masques", "máscaras"),
    "blend": ("混合方式", "混ぜ方", "mélange", "mezcla"),
    "grow": ("扩展（像素）", "拡張（px）", "agrandir (px)", "ampliar (px)"),
    "feather": ("羽化（像素）", "ぼかし（px）", "adoucir (px)", "difuminar (px)"),
    "coverage": ("覆盖", "セルの扱い", "couverture", "cobertura"),
    "min_strength": ("最小强度", "最小強度", "force minimale", "fuerza mínima"),
    "bias": ("偏置", "バイアス", "biais", "sesgo"),
    "preservation": ("保留强度", "保持の強さ", "préservation", "preservación"),
    "original": ("原图", "元画像", "original", "original"),
    "generated": ("生成图", "生成画像", "généré", "generada"),
    "match_color": ("匹配颜色", "色を合わせる", "accorder la couleur", "igualar color"),
    "folder": ("文件夹", "フォルダー", "dossier", "carpeta"),
    "captions": ("描述", "キャプション", "légendes", "descripciones"),
    "caption_syntax": ("描述语法", "キャプションの書式", "syntaxe des légendes", "sintaxis de las descripciones"),
    "template": ("模板", "テンプレート", "modèle de texte", "plantilla"),
    "separator": ("分隔符", "区切り", "séparateur", "separador"),
    "shuffle": ("打乱标签", "タグを並べ替え", "mélanger les tags", "mezclar etiquetas"),
    "keep_first": ("保留开头标签数", "先頭に残すタグ数", "premiers tags fixes", "primeras etiquetas fijas"),
    "drop_tags": ("标签丢弃率", "タグの省略率", "tags omis", "etiquetas omitidas"),
    "keep_tags": ("始终保留的标签", "必ず残すタグ", "tags toujours gardés", "etiquetas siempre presentes"),
    "variants": ("变体数", "変形の数", "variantes", "variantes"),
    "prepend": ("前置标签", "前に付けるタグ", "tags au début", "etiquetas al principio"),
    "append": ("后置标签", "後に付けるタグ", "tags à la fin", "etiquetas al final"),
    "replace": ("替换", "置き換え", "remplacer", "reemplazar"),
    "trigger": ("触发词", "トリガー語", "mot déclencheur", "palabra clave"),
    "resolution": ("分辨率", "解像度", "résolution", "resolución"),
    "bucket": ("按比例分桶", "縦横比を保つ", "garder les proportions", "conservar proporciones"),
    "bucket_step": ("分桶步长（像素）", "サイズの刻み（px）", "pas des tailles (px)", "paso de tamaños (px)"),
    "flip": ("镜像", "左右反転", "miroir", "espejo"),
    "repeats": ("重复", "繰り返し", "répétitions", "repeticiones"),
    "name": ("名称", "名前", "nom", "nombre"),
    "init_text": ("起始词", "初期の語", "mots de départ", "palabras iniciales"),
    "vectors": ("向量数", "ベクトル数", "vecteurs", "vectores"),
    "init": ("初始化", "初期化", "initialisation", "inicio"),
    "norm_limit": ("长度上限", "長さの上限", "limite de longueur", "límite de longitud"),
    "embedding": ("嵌入", "埋め込み", "embedding", "embedding"),
    "embedding_name": ("嵌入文件", "埋め込みファイル", "fichier d'embedding", "archivo de embedding"),
    "overwrite": ("覆盖", "上書き", "remplacer", "sobrescribir"),
    "format": ("格式", "形式", "format", "formato"),
    "score_pictures": ("逐图评分", "画像ごとの評価", "évaluer les images", "evaluar las imágenes"),
    "min_timestep": ("最小时间步", "最小タイムステップ", "pas de temps minimal", "paso de tiempo mínimo"),
    "max_timestep": ("最大时间步", "最大タイムステップ", "pas de temps maximal", "paso de tiempo máximo"),
    "preserve": ("保持的提示词", "保つプロンプト", "prompts à préserver", "prompts que preservar"),
    "preserve_weight": ("保持权重", "保持の重み", "poids de préservation", "peso de la preservación"),
    "loss_type": ("损失类型", "損失の種類", "type de perte", "tipo de pérdida"),
    "huber_c": ("Huber 阈值", "Huber のしきい値", "seuil de Huber", "umbral de Huber"),
    "multires_noise": ("多分辨率噪声", "多重解像度ノイズ", "bruit multirésolution", "ruido multirresolución"),
    "ip_noise_gamma": ("输入扰动", "入力の摂動", "perturbation de l'entrée", "perturbación de la entrada"),
    "compile": ("编译", "コンパイル", "compiler", "compilar"),
    "stop": ("停止", "終了", "arrêt", "parada"),
    "preview": ("预览图", "プレビュー", "aperçu", "vista previa"),
    "labels": ("标签", "ラベル", "étiquettes", "etiquetas"),
}


def main() -> None:
    schemas = json.loads((ROOT / "tests" / "comfy" / "schemas.json").read_text("utf-8"))
    for place, language in enumerate(LANGUAGES):
        nodes = {}
        for node, schema in schemas.items():
            if node not in TITLES:
                continue
            known = {
                item["id"]: {"name": INPUTS[item["id"]][place]} for item in schema["inputs"] if item["id"] in INPUTS
            }
            nodes[node] = {"display_name": f"Bespoke {TITLES[node][place]}", "inputs": known}
        path = ROOT / "locales" / language / "nodeDefs.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(nodes, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
